"""Packaging: metadata, dependencies, extras, the console script and the files that ship beside the code."""

from pathlib import Path

from setuptools import find_packages, setup

AUDIO = ["soundfile>=0.12", "soxr>=0.3.7", "tqdm>=4.66"]
# Of examples/export.py.
EXPORT = ["onnx>=1.19", "onnxscript>=0.5", "onnxruntime>=1.23"]
HUB = ["huggingface_hub>=0.25"]
PLOT = ["matplotlib>=3.8"]
# The release that the parity tests compare with, to the digit: another one may compute something else.
TRANSFORMERS = ["transformers==5.24.0"]
# The course: its chapters are text files that jupytext opens as notebooks, nbclient runs and nbconvert renders.
LEARN = [*PLOT, *TRANSFORMERS, "jupytext>=1.16", "nbclient>=0.10", "nbconvert>=7.16", "ipykernel>=6.29"]

setup(
    name="musicgen-ref",
    version="0.3.0",
    description="MusicGen from scratch in plain PyTorch: readable, equal to Hugging Face transformers, offline",
    long_description=Path(__file__).with_name("README.md").read_text(encoding="utf-8"),
    long_description_content_type="text/markdown",
    author="The musicgen_ref authors",
    license="MIT",
    license_files=["LICENSE"],
    packages=find_packages(include=["musicgen_ref", "musicgen_ref.*", "weights_convert", "weights_convert.*"]),
    package_data={
        "musicgen_ref": ["py.typed", "demo/*", "anatomy/*.html", "anatomy/*.css", "anatomy/*.js", "fast/*.cpp"]
    },
    python_requires=">=3.10",
    # Older versions of sentencepiece read beyond a damaged file. Those of torch do, too, but here it reads no file.
    install_requires=["torch>=2.6", "numpy>=1.26", "sentencepiece>=0.2.1", "safetensors>=0.4.3", "einops>=0.7"],
    extras_require={
        "audio": AUDIO,
        "export": EXPORT,
        "hub": HUB,
        "learn": LEARN,
        "plot": PLOT,
        "test": [
            *AUDIO,
            *EXPORT,
            *HUB,
            *LEARN,
            "pytest>=8",
            "hypothesis>=6.100",
            "scipy>=1.13",
            "pyyaml>=6",  # to compare with
            "peft>=0.13",  # likewise, for adapters
            "ruff>=0.9",
            "mypy>=1.14",
            "setuptools>=77",  # builds the wheel that a test installs
        ],
        "mutation": ["cosmic-ray>=8.7", "coverage>=7.6"],  # beside "test": plants faults that the tests should notice
        "bench": [*PLOT, *TRANSFORMERS],
    },
    entry_points={"console_scripts": ["musicgen-ref = musicgen_ref.__main__:main"]},
)
