"""The shape of the source: which module imports which, what library code keeps its hands off, how long the path is."""

import ast
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
PACKAGES = ("musicgen_ref", "weights_convert")
# Everything that one generate() runs, from text ids to waveform.
READING_PATH = ("model", "t5", "decoder", "attention", "delay", "sampling", "encodec")
LINES = 1290

# What each module may import of ours. Leaves have nothing, so that they can be copied into another project alone.
OURS = {
    "musicgen_ref": {f"musicgen_ref.{name}" for name in ("decoder", "encodec", "model", "t5")},
    "musicgen_ref.attention": set(),
    "musicgen_ref.delay": set(),
    "musicgen_ref.sampling": set(),
    "musicgen_ref.encodec": set(),
    "musicgen_ref.t5": {"musicgen_ref.attention"},
    "musicgen_ref.decoder": {"musicgen_ref.attention"},
    "musicgen_ref.model": {f"musicgen_ref.{name}" for name in READING_PATH if name != "model"},
    "musicgen_ref.text": set(),
    "musicgen_ref.audio": set(),
    "musicgen_ref.checkpoint": {
        f"weights_convert.{name}" for name in ("adapter", "files", "huggingface", "mapping", "source")
    }
    | {f"musicgen_ref.{name}" for name in ("decoder", "encodec", "model", "quantize", "t5", "text")},
    "musicgen_ref.__main__": {"musicgen_ref", "weights_convert.__main__", "weights_convert.info"}
    | {f"musicgen_ref.{name}" for name in ("audio", "checkpoint", "model")},
    # The facade: each of its modules, and what of ours it calls.
    "musicgen_ref.hf": {
        f"musicgen_ref.hf.{name}"
        for name in ("conditional", "configs", "loading", "modules", "outputs", "pipelines", "processor")
    },
    "musicgen_ref.hf.outputs": set(),
    "musicgen_ref.hf.messages": set(),
    "musicgen_ref.hf.files": {"musicgen_ref.checkpoint", "weights_convert.files", "weights_convert.hub"},
    "musicgen_ref.hf.configs": {f"weights_convert.{name}" for name in ("adapter", "files", "huggingface")}
    | {f"musicgen_ref.{name}" for name in ("decoder", "encodec", "hf.files", "hf.messages", "t5")},
    "musicgen_ref.hf.loading": {f"musicgen_ref.hf.{name}" for name in ("configs", "files", "messages")}
    | {f"musicgen_ref.{name}" for name in ("attention", "checkpoint", "decoder", "encodec", "model", "quantize", "t5")}
    | {"musicgen_ref", "musicgen_ref.text"}
    | {f"weights_convert.{name}" for name in ("files", "huggingface", "mapping", "source")},
    "musicgen_ref.hf.generation": {f"musicgen_ref.hf.{name}" for name in ("configs", "loading", "messages")}
    | {f"musicgen_ref.{name}" for name in ("attention", "decoder", "delay", "model", "sampling")},
    "musicgen_ref.hf.modules": {f"musicgen_ref.hf.{name}" for name in ("configs", "generation", "loading", "outputs")}
    | {f"musicgen_ref.{name}" for name in ("attention", "decoder", "encodec", "model", "t5")},
    "musicgen_ref.hf.conditional": {
        f"musicgen_ref.hf.{name}" for name in ("configs", "generation", "loading", "messages", "modules", "outputs")
    }
    | {"musicgen_ref.model"},
    "musicgen_ref.hf.processor": {f"musicgen_ref.hf.{name}" for name in ("files", "messages", "outputs")}
    | {"musicgen_ref.text", "weights_convert.files", "weights_convert.source"},
    "musicgen_ref.hf.pipelines": {
        f"musicgen_ref.hf.{name}" for name in ("conditional", "files", "generation", "loading", "messages", "processor")
    },
    "weights_convert": set(),
    "weights_convert.mapping": set(),
    "weights_convert.files": set(),
    "weights_convert.xpcfg": set(),
    "weights_convert.adapter": {"weights_convert.files", "weights_convert.huggingface"},
    "weights_convert.hub": {"weights_convert.adapter", "weights_convert.files", "musicgen_ref.text"},
    "weights_convert.huggingface": {"weights_convert.mapping"}
    | {f"musicgen_ref.{name}" for name in ("decoder", "encodec", "t5")},
    "weights_convert.audiocraft": {f"weights_convert.{name}" for name in ("huggingface", "mapping", "xpcfg")}
    | {f"musicgen_ref.{name}" for name in ("decoder", "delay", "encodec", "t5")},
    # It builds the model without values, to know the shapes.
    "weights_convert.source": {
        f"weights_convert.{name}" for name in ("adapter", "audiocraft", "files", "huggingface", "mapping")
    }
    | {f"musicgen_ref.{name}" for name in ("decoder", "encodec", "model", "t5", "text")},
    "weights_convert.convert": {
        f"weights_convert.{name}" for name in ("audiocraft", "files", "hub", "huggingface", "mapping", "source")
    },
    "weights_convert.info": {
        f"weights_convert.{name}" for name in ("adapter", "audiocraft", "files", "huggingface", "source", "xpcfg")
    }
    | {f"musicgen_ref.{name}" for name in ("encodec", "model", "text")},
    "weights_convert.verify": {"weights_convert.mapping", "weights_convert.source"}
    | {f"musicgen_ref.{name}" for name in ("checkpoint", "encodec", "model")},
    "weights_convert.__main__": {"weights_convert.convert", "weights_convert.info", "weights_convert.verify"},
}
# What each may import of others at module level, beside the standard library and torch.
OTHERS = {
    **{f"musicgen_ref.{name}": {"einops"} for name in READING_PATH},
    "musicgen_ref.text": {"numpy", "sentencepiece"},
    "musicgen_ref.audio": {"numpy"},
    "musicgen_ref.checkpoint": {"safetensors"},
    "musicgen_ref.hf.loading": {"safetensors"},
    "musicgen_ref.hf.modules": {"einops"},
    "musicgen_ref.hf.processor": {"numpy"},
    "weights_convert.files": {"numpy"},
}
# Imports inside functions: of an extra that may be absent, or of a module that imports this one.
DEFERRED = {
    "musicgen_ref.model": {
        ("MusicGen.compile", "musicgen_ref.fast.compile"),
        ("MusicGen.from_pretrained", "musicgen_ref.checkpoint"),
        ("MusicGen.save_pretrained", "musicgen_ref.checkpoint"),
    },
    "musicgen_ref.audio": {("read_wav", "soundfile"), ("resample", "soxr")},
    "musicgen_ref.__main__": {("progress", "tqdm")},
    "weights_convert.hub": {("download", "huggingface_hub"), ("download", "huggingface_hub.errors")},
}


def modules() -> dict[str, Path]:
    """Every module of the packages by its dotted name."""
    files = [file for package in PACKAGES for file in (ROOT / package).rglob("*.py")]
    return {".".join(file.relative_to(ROOT).with_suffix("").parts).removesuffix(".__init__"): file for file in files}


MODULES = modules()


def tree(module: str) -> ast.Module:
    return ast.parse(MODULES[module].read_text(encoding="utf-8"))


def imports(module: str) -> Iterator[tuple[str, str]]:
    """(Where, what) of every import: the function or "" for the module level; a module, by its full dotted name."""
    package = module if MODULES[module].name == "__init__.py" else module.rpartition(".")[0]

    def visit(node: ast.AST, where: str) -> Iterator[tuple[str, str]]:
        if isinstance(node, ast.Import):
            yield from ((where, alias.name) for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            source = node.module or ""
            if node.level:
                parents = package.split(".")[: len(package.split(".")) - node.level + 1]
                source = ".".join([*parents, *([node.module] if node.module else [])])
            # `from package import name`: the name may be a module of its own.
            for alias in node.names:
                full = f"{source}.{alias.name}"
                yield where, full if full in MODULES else source
        inside = isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef | ast.ClassDef)
        for child in ast.iter_child_nodes(node):
            yield from visit(child, f"{where}.{node.name}".strip(".") if inside else where)

    yield from visit(tree(module), "")


def is_ours(name: str) -> bool:
    return name.partition(".")[0] in PACKAGES


def test_the_reading_path_is_there() -> None:
    assert {f"musicgen_ref.{name}" for name in READING_PATH} < MODULES.keys()


def test_imports_are_seen() -> None:
    assert ("", "musicgen_ref.delay") in set(imports("musicgen_ref.model"))  # from . import delay
    assert ("", "weights_convert.mapping") in set(imports("musicgen_ref.checkpoint"))  # from package import module
    assert ("", "musicgen_ref.attention") in set(imports("musicgen_ref.t5"))  # from .attention import Attention
    assert ("", "torch") in set(imports("musicgen_ref.delay"))  # import torch


@pytest.mark.parametrize("module", MODULES)
def test_a_module_imports_only_what_lies_below_it(module: str) -> None:
    assert module in OURS, "a new module: say above what it may import"
    of_ours = {name for where, name in imports(module) if not where and is_ours(name)}
    assert of_ours <= OURS[module]


def test_no_module_lies_below_itself() -> None:
    def below(module: str, path: tuple[str, ...] = ()) -> None:
        assert module not in path, path
        for name in OURS[module]:
            # The package itself re-exports the model; its submodules are reached without that.
            if name not in PACKAGES:
                below(name, (*path, module))

    for module in OURS:
        below(module)


@pytest.mark.parametrize("module", MODULES)
def test_a_module_imports_no_other_package_than_it_needs(module: str) -> None:
    others = {name.partition(".")[0] for where, name in imports(module) if not where and not is_ours(name)}
    assert others - sys.stdlib_module_names <= {"torch"} | OTHERS.get(module, set())


@pytest.mark.parametrize("module", MODULES)
def test_an_import_inside_a_function_has_a_reason(module: str) -> None:
    assert {(where, name) for where, name in imports(module) if where} == DEFERRED.get(module, set())


def dotted(node: ast.AST) -> str:
    """`a.b.c` of an expression of names; "" for anything else."""
    if isinstance(node, ast.Name):
        return node.id
    if isinstance(node, ast.Attribute):
        return f"{dotted(node.value)}.{node.attr}" if dotted(node.value) else ""
    return ""


# Of the caller: the RNG, defaults, threads, the environment, the warnings filter, the grad mode.
GLOBALS = (
    "manual_seed", "seed", "set_rng_state", "set_default_dtype", "set_default_device", "set_default_tensor_type",
    "set_num_threads", "set_num_interop_threads", "set_grad_enabled", "use_deterministic_algorithms",
    "set_float32_matmul_precision", "environ", "putenv", "getenv", "setenv", "chdir", "simplefilter", "filterwarnings",
    "basicConfig", "setrecursionlimit",
)  # fmt: skip
PRINTS = ("print", "input", "breakpoint", "stdout", "stderr", "exit")


@pytest.mark.parametrize("module", MODULES)
def test_library_code_touches_nothing_global(module: str) -> None:
    nodes = list(ast.walk(tree(module)))
    names = {dotted(node) for node in nodes}
    names |= {
        f"{node.module}.{alias.name}" for node in nodes if isinstance(node, ast.ImportFrom) for alias in node.names
    }
    # The command line seeds the generator that it makes itself.
    touched = {name for name in names if name.rpartition(".")[2] in GLOBALS and "." in name} - (
        {"generator.seed", "generator.manual_seed", "args.seed"} if module == "musicgen_ref.__main__" else set()
    )
    assert touched == set()
    assert not [node for node in nodes if isinstance(node, ast.Global)]
    written = {dotted(node) for node in nodes if isinstance(getattr(node, "ctx", None), ast.Store)}
    assert not {name for name in written if name.startswith(("torch.", "np.", "os.", "sys."))}  # flags of a library
    for _, name in imports(module):
        assert name not in ("logging", "warnings", "random")


@pytest.mark.parametrize("module", [name for name in MODULES if not name.endswith("__main__")])
def test_library_code_prints_nothing(module: str) -> None:
    names = {dotted(node) for node in ast.walk(tree(module))}
    assert not {name for name in names if name in PRINTS or name.startswith("sys.std")}


# The facade stands in for a library of class hierarchies: users ask `isinstance(model, PreTrainedModel)`, read fields
# that every configuration has, and unpack outputs as mappings.
HIERARCHIES = {
    "musicgen_ref.hf.outputs": {"dict"},
    "musicgen_ref.hf.configs": {"Config"},
    "musicgen_ref.hf.modules": {"PreTrainedModel"},
    "musicgen_ref.hf.conditional": {"PreTrainedModel"},
}


@pytest.mark.parametrize("module", MODULES)
def test_classes_have_no_base_of_ours(module: str) -> None:
    allowed = {"nn.Module", "nn.Linear", "nn.Sequential", "NamedTuple", "Protocol", "TorchFunctionMode"}
    classes = [node for node in ast.walk(tree(module)) if isinstance(node, ast.ClassDef)]
    bases = {dotted(b.value if isinstance(b, ast.Subscript) else b) for node in classes for b in node.bases}
    assert bases <= allowed | HIERARCHIES.get(module, set())


def test_there_is_no_utils_module() -> None:
    assert not [name for name in MODULES if name.rpartition(".")[2] in ("utils", "util", "common", "helpers", "misc")]


def test_the_reading_path_stays_an_evenings_reading() -> None:
    files = [ROOT / "musicgen_ref" / f"{name}.py" for name in READING_PATH]
    lines = sum(bool(line.strip()) for file in files for line in file.read_text(encoding="utf-8").splitlines())
    assert lines <= LINES
