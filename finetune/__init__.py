"""A flat package of nouns on which `fine_tuning_llm.py` and `inference.py` stand. It never imports a
script."""
