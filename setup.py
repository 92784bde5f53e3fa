"""Adds to the wheel what `multicrop run` reads beside the package: run.py, conf/ and the published figures."""

import shutil
from pathlib import Path

from setuptools import setup
from setuptools.command.build_py import build_py

BESIDE = ("run.py", "conf", "experiments/published.csv")


class WithRepository(build_py):
    """Copies the files of the repository to multicrop/repository; an editable install reads them in place."""

    def run(self) -> None:
        """Build the package, then copy."""
        super().run()
        if self.editable_mode:
            return
        target = Path(self.build_lib, "multicrop", "repository")
        shutil.rmtree(target, ignore_errors=True)  # of an earlier build
        for name in BESIDE:
            (target / name).parent.mkdir(parents=True, exist_ok=True)
            copy = shutil.copytree if Path(name).is_dir() else shutil.copyfile
            copy(name, target / name)


setup(cmdclass={"build_py": WithRepository})
