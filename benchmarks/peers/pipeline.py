"""transformers' fill-mask pipeline, as its documentation begins.

python benchmarks/peers/pipeline.py MODEL "今天天氣很[MASK]。"
"""

import sys

from transformers import pipeline

if __name__ == "__main__":
    print(pipeline("fill-mask", model=sys.argv[1])(sys.argv[2]))
