"""The shape of the source: which module imports which, what library code keeps its hands off, how long the path is."""

import ast
import re
import sys
from collections.abc import Iterable, Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
PACKAGES = ("musicgen_ref", "weights_convert")
# Everything that one generate() runs, from text ids to waveform.
READING_PATH = ("model", "t5", "decoder", "attention", "delay", "sampling", "encodec")
# Lines of code: docstrings, comments and blank lines are free, since reasons and pictures are what a reader came for.
# The path has at most 850; the rest is for a reader's experiments.
LINES = 950

PATH = {f"musicgen_ref.{name}" for name in READING_PATH}
CHECKS = {"musicgen_ref.checks"}
# What each may import of ours, a package for all of its modules; what it does not name lies above it. Each file of the
# path can be copied into another project, with checks.py, and for T5 and the decoder attention.py, beside it.
OURS: dict[str, set[str]] = {
    "musicgen_ref": {f"musicgen_ref.{name}" for name in ("decoder", "encodec", "model", "t5")},
    "musicgen_ref.attention": set(),
    "musicgen_ref.delay": set(),
    "musicgen_ref.sampling": set(),
    "musicgen_ref.checks": set(),
    "musicgen_ref.encodec": CHECKS,
    "musicgen_ref.t5": CHECKS | {"musicgen_ref.attention"},
    "musicgen_ref.decoder": CHECKS | {"musicgen_ref.attention"},
    "musicgen_ref.model": CHECKS | PATH,
    "musicgen_ref.messages": set(),
    "musicgen_ref.strict": {"musicgen_ref.messages"},
    "musicgen_ref.text": {"musicgen_ref.messages", "musicgen_ref.strict"},
    "musicgen_ref.output": set(),
    "musicgen_ref.audio": CHECKS | {"musicgen_ref.output"},
    "musicgen_ref.fast": CHECKS | PATH,
    "musicgen_ref.checkpoint": CHECKS
    | PATH
    | {f"musicgen_ref.{name}" for name in ("fast", "messages", "strict", "text")},
    "musicgen_ref.hf": CHECKS
    | PATH
    | {f"musicgen_ref.{name}" for name in ("checkpoint", "fast", "messages", "text")}
    | {"musicgen_ref"},
    "musicgen_ref.anatomy": PATH | {"musicgen_ref.output"},
    "musicgen_ref.parity": CHECKS
    | PATH
    | {f"musicgen_ref.{name}" for name in ("checkpoint", "output", "text")}
    | {"musicgen_ref"},
    "musicgen_ref.__main__": PATH
    | {f"musicgen_ref.{name}" for name in ("anatomy", "audio", "checkpoint", "parity")}
    | {"musicgen_ref"},
    "weights_convert": CHECKS
    | PATH
    | {f"musicgen_ref.{name}" for name in ("__main__", "checkpoint", "messages", "text")},
}
# What each may import of others at module level, beside the standard library and torch.
OTHERS = {
    **{f"musicgen_ref.{name}": {"einops"} for name in READING_PATH},
    "musicgen_ref.fast.linear": {"einops"},
    "musicgen_ref.fast.codec": {"einops"},
    "musicgen_ref.fast.seanet": {"einops"},
    "musicgen_ref.text": {"numpy"},
    "musicgen_ref.audio": {"numpy"},
    "musicgen_ref.anatomy.clip": {"einops"},
    "musicgen_ref.anatomy.page": {"numpy"},
    "musicgen_ref.checkpoint": {"safetensors"},
    "musicgen_ref.hf.callers": {"numpy"},
    "musicgen_ref.parity.compare": {"numpy"},
    "musicgen_ref.parity.recording": {"safetensors"},
    "musicgen_ref.parity.of_audiocraft": {"safetensors"},
    "musicgen_ref.hf.modules": {"einops"},
    "musicgen_ref.hf.names": {"einops"},
    "musicgen_ref.hf.processor": {"numpy"},
    "musicgen_ref.checkpoint.archive": {"numpy"},
}
# Imports inside functions: of an extra that may be absent, or of a module that imports this one.
DEFERRED = {
    "musicgen_ref.model": {
        ("MusicGen.compile", "musicgen_ref.fast.compile"),
        ("MusicGen.from_pretrained", "musicgen_ref.checkpoint"),
        ("MusicGen.save_pretrained", "musicgen_ref.checkpoint"),
    },
    "musicgen_ref.audio": {("read_wav", "soundfile"), ("_soundfile", "soundfile"), ("resample", "soxr")},
    "musicgen_ref.__main__": {("progress", "tqdm")},
    "musicgen_ref.parity.of_audiocraft": {
        ("main", "audiocraft"),
        ("main", "audiocraft.models.loaders"),
        ("of_decoder", "audiocraft.modules.conditioners"),
    },
    "musicgen_ref.parity.of_transformers": {
        ("_library", "transformers"),
        ("guided", "transformers.generation.logits_process"),
    },
    "musicgen_ref.checkpoint.hub": {("download", "huggingface_hub"), ("download", "huggingface_hub.errors")},
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
    assert ("", "musicgen_ref.checkpoint.mapping") in set(imports("musicgen_ref.checkpoint"))  # from . import mapping
    assert ("", "musicgen_ref.attention") in set(imports("musicgen_ref.t5"))  # from .attention import Attention
    assert ("", "torch") in set(imports("musicgen_ref.delay"))  # import torch


def within(name: str, packages: Iterable[str]) -> str:
    """The longest of the names of packages that a module is, or lies in; "" for none. musicgen_ref is itself alone."""
    fits = [one for one in packages if name == one or (one != "musicgen_ref" and name.startswith(f"{one}."))]
    return max(fits, key=len, default="")


@pytest.mark.parametrize("module", MODULES)
def test_a_module_imports_only_what_lies_below_it(module: str) -> None:
    package = within(module, OURS)
    assert package, "a new module: say above what it may import"
    allowed = OURS[package] | ({package} if package != "musicgen_ref" else set())
    of_ours = {name for where, name in imports(module) if not where and is_ours(name)}
    assert {name for name in of_ours if not within(name, allowed)} == set()


# MusicGen's doors to what builds on it, which it imports when they are called.
DOORS = {("musicgen_ref.model", name) for name in ("musicgen_ref.checkpoint", "musicgen_ref.fast.compile")}


def test_no_two_files_import_each_other() -> None:
    """Imports inside functions included; a package is its __init__.py."""
    graph = {module: {name for _, name in imports(module) if name in MODULES} for module in MODULES}
    graph = {module: {name for name in below if (module, name) not in DOORS} for module, below in graph.items()}

    def visit(module: str, path: tuple[str, ...] = ()) -> None:
        assert module not in path, " -> ".join([*path[path.index(module) :], module])
        if module not in seen:
            for below in sorted(graph[module]):
                visit(below, (*path, module))
            seen.add(module)

    seen: set[str] = set()
    for module in MODULES:
        visit(module)


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


SEEDED = {
    # The command line seeds the generator that it makes itself.
    "musicgen_ref.__main__": {"generator.seed", "generator.manual_seed", "args.seed"},
    # transformers draws from the global generator alone; its state is put back.
    "musicgen_ref.parity.of_transformers": {"torch.manual_seed"},
    # CXX names the C++ compiler; it is read when something is compiled.
    "musicgen_ref.fast.native": {"os.environ"},
    # set_seed() is asked for just that.
    "musicgen_ref.hf.callers": {"random", "random.seed", "np.random.seed", "torch.manual_seed"}
    | {"torch.use_deterministic_algorithms"},
}


@pytest.mark.parametrize("module", MODULES)
def test_library_code_touches_nothing_global(module: str) -> None:
    nodes = list(ast.walk(tree(module)))
    names = {dotted(node) for node in nodes}
    names |= {
        f"{node.module}.{alias.name}" for node in nodes if isinstance(node, ast.ImportFrom) for alias in node.names
    }
    allowed = SEEDED.get(module, set())
    touched = {name for name in names if name.rpartition(".")[2] in GLOBALS and "." in name} - allowed
    assert touched == set()
    assert not [node for node in nodes if isinstance(node, ast.Global)]
    written = {dotted(node) for node in nodes if isinstance(getattr(node, "ctx", None), ast.Store)}
    assert not {name for name in written if name.startswith(("torch.", "np.", "os.", "sys."))}  # flags of a library
    for _, name in imports(module):
        assert name not in ("logging", "warnings", "random") or name in allowed


@pytest.mark.parametrize("module", [name for name in MODULES if not name.endswith("__main__")])
def test_library_code_prints_nothing(module: str) -> None:
    names = {dotted(node) for node in ast.walk(tree(module))}
    assert not {name for name in names if name in PRINTS or name.startswith("sys.std")}


# The facade stands in for a library of class hierarchies: users ask `isinstance(model, PreTrainedModel)`, read fields
# that every configuration has, and unpack outputs as mappings.
HIERARCHIES = {
    "musicgen_ref.hf.outputs": {"dict"},
    "musicgen_ref.hf.configs": {"Config"},
    "musicgen_ref.hf.modules": {"Around", "PreTrainedModel", "T5EncoderModel", "MusicgenModel"},
    # A tree of views is one of modules, and what nn.Module keeps its children in.
    "musicgen_ref.hf.names": {"Around", "View", "MutableMapping", "nn.ModuleList"},
    "musicgen_ref.hf.conditional": {"PreTrainedModel"},
    # persistent_id() of a pickler is a method of its class, in Python 3.13 at least.
    "musicgen_ref.checkpoint.files": {"pickle.Pickler"},
    # Other numbers in the same cache; and what C++ reads.
    "musicgen_ref.fast.cache": {"KVCache"},
    "musicgen_ref.fast.native": {"ctypes.Structure"},
    "musicgen_ref.fast.step": {"ctypes.Structure"},
}


@pytest.mark.parametrize("module", MODULES)
def test_classes_have_no_base_of_ours(module: str) -> None:
    allowed = {"nn.Module", "nn.Linear", "nn.Sequential", "NamedTuple", "Protocol", "TorchFunctionMode"}
    classes = [node for node in ast.walk(tree(module)) if isinstance(node, ast.ClassDef)]
    bases = {dotted(b.value if isinstance(b, ast.Subscript) else b) for node in classes for b in node.bases}
    assert bases <= allowed | HIERARCHIES.get(module, set())


def test_there_is_no_utils_module() -> None:
    assert not [name for name in MODULES if name.rpartition(".")[2] in ("utils", "util", "common", "helpers", "misc")]


def lines_of_code(text: str) -> int:
    """Docstrings, comments and blank lines not counted."""
    free: set[int] = set()
    for node in ast.walk(ast.parse(text)):
        if isinstance(node, ast.Module | ast.ClassDef | ast.FunctionDef) and ast.get_docstring(node) is not None:
            free |= set(range(node.body[0].lineno, (node.body[0].end_lineno or 0) + 1))
    lines = enumerate(text.splitlines(), start=1)
    return sum(bool(line.strip()) and not line.strip().startswith("#") and i not in free for i, line in lines)


def test_the_reading_path_stays_an_evenings_reading() -> None:
    files = [ROOT / "musicgen_ref" / f"{name}.py" for name in READING_PATH]
    assert sum(lines_of_code(file.read_text(encoding="utf-8")) for file in files) <= LINES


def test_the_reading_path_holds_no_tuning() -> None:
    tuning = r"Intel|AMD|AVX|MKL|BLAS|memory_format|channels_last|num_threads|huge|in_windows|conv2d"
    for name in READING_PATH:
        text = (ROOT / "musicgen_ref" / f"{name}.py").read_text(encoding="utf-8")
        assert re.findall(tuning, text) == [], name
