"""The extension module: its headers are part of what it is built from."""

from pathlib import Path

from setuptools import Extension, setup

NAME = "reclaimactors_native"

setup(
    ext_modules=[
        Extension(
            f"{NAME}._threads",
            sources=[f"{NAME}/_threads.c"],
            depends=sorted(map(str, Path(NAME).glob("*.h"))),
            extra_compile_args=["-std=c11", "-O2", "-Wall", "-Wextra"],
        )
    ]
)
