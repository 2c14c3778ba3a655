"""Add ds_config.json, which stays beside the scripts, to the package; the rest is in pyproject.toml."""

from __future__ import annotations

from pathlib import Path

from setuptools import setup
from setuptools.command.build_py import build_py

CONFIG = "ds_config.json"


class BuildWithConfig(build_py):
    """Build the modules; put ds_config.json where `deepspeed_config.read` finds it in a wheel."""

    def run(self) -> None:
        """Build, then copy; an editable install reads the file beside the scripts."""
        super().run()
        if not self.editable_mode:
            self.copy_file(CONFIG, str(Path(self.build_lib, "finetune/training", CONFIG)))


setup(cmdclass={"build_py": BuildWithConfig})
