"""pyproject.toml, requirements.lock and environment.yml say the same, and the code imports nothing else."""

import ast
import importlib.metadata
import re
import subprocess
import sys
import tomllib
from pathlib import Path

import pytest
import yaml
from packaging.requirements import Requirement
from packaging.specifiers import SpecifierSet
from packaging.utils import canonicalize_name

ROOT = Path(__file__).resolve().parents[1]
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]
EXTRAS = PROJECT["optional-dependencies"]
LOCK_LINES = [
    line for line in (ROOT / "requirements.lock").read_text(encoding="utf-8").splitlines() if line and line[0] != "#"
]
LOCK = {canonicalize_name(Requirement(line).name): Requirement(line) for line in LOCK_LINES}
ENVIRONMENT = yaml.safe_load((ROOT / "environment.yml").read_text(encoding="utf-8"))
# Import name -> distribution, where they differ.
DISTRIBUTIONS = {"PIL": "pillow", "sklearn": "scikit-learn", "yaml": "pyyaml", "bs4": "beautifulsoup4"}
DISTRIBUTIONS |= {"spellchecker": "pyspellchecker"}
# Installed with torch, rich, datasets or jupyter-book under any version that they accept.
FOLLOW = {"huggingface_hub", "tqdm", "IPython", "matplotlib_inline", "myst_nb", "sphinx"}


def requirements() -> list[Requirement]:
    """Every requirement of pyproject.toml, extras included, those on vbank's own extras left out."""
    listed = [*PROJECT["dependencies"], *(line for extra in EXTRAS.values() for line in extra)]
    return [requirement for requirement in map(Requirement, listed) if requirement.name != "vbank"]


@pytest.mark.parametrize("requirement", requirements(), ids=str)
def test_every_requirement_is_pinned_within_its_range(requirement: Requirement) -> None:
    pin = LOCK[canonicalize_name(requirement.name)]
    (exact,) = pin.specifier
    assert requirement.specifier.contains(exact.version)
    assert any(part.operator in ("<", "==") for part in requirement.specifier), "a range has an end"


def test_the_lock_is_nothing_but_pins() -> None:
    """Exact versions, once each, sorted; no index, no host, no path, no build of one machine."""
    names = [canonicalize_name(Requirement(line).name) for line in LOCK_LINES]
    assert names == sorted(set(names))
    for line in LOCK_LINES:
        assert re.fullmatch(r"[a-z0-9.-]+==[0-9][0-9a-z.]*( ; sys_platform == \"[a-z0-9]+\")?", line), line
    assert LOCK_LINES.count("torch==2.13.0") == 1
    assert not [name for name in names if name.startswith(("nvidia-", "cuda-")) or name == "triton"]


def test_the_lock_is_closed() -> None:
    """What the pinned packages themselves require is pinned too, on Linux and macOS, for Python 3.11 to 3.14.

    Torch's own CUDA packages are the exception: which ones depends on the build, and it pins them exactly.
    """
    missing = set()
    for name in LOCK:
        try:
            required = importlib.metadata.requires(name) or []
        except importlib.metadata.PackageNotFoundError:
            assert LOCK[name].marker is not None, f"{name} is pinned but not installed"
            continue
        for requirement in map(Requirement, required):
            for python in ("3.11", "3.12", "3.13", "3.14"):
                for platform, system in (("linux", "Linux"), ("darwin", "Darwin")):
                    here = {
                        "python_version": python,
                        "python_full_version": f"{python}.0",
                        "sys_platform": platform,
                        "platform_system": system,
                        "extra": "",
                    }
                    wanted = requirement.marker is None or requirement.marker.evaluate(here)
                    built = requirement.name.startswith(("nvidia-", "cuda-")) or requirement.name == "triton"
                    if wanted and canonicalize_name(requirement.name) not in LOCK and not (name == "torch" and built):
                        missing.add((name, requirement.name))
    assert missing == set()


def test_the_environment_is_the_lock() -> None:
    """The packages that these tests run with are the pinned ones."""
    different = {}
    for name, pin in LOCK.items():
        if pin.marker is None or pin.marker.evaluate():
            installed = importlib.metadata.version(name).split("+")[0]
            if not pin.specifier.contains(installed):
                different[name] = (str(pin.specifier), installed)
    assert different == {}


def test_conda_gets_the_same() -> None:
    *packages, through_pip = ENVIRONMENT["dependencies"]
    assert through_pip == {"pip": ["-r requirements.lock", "-e ."]}
    (python,) = [Requirement(line) for line in packages if line.startswith("python")]
    assert python.specifier == SpecifierSet(PROJECT["requires-python"])
    assert "pip" in packages


def test_extras() -> None:
    assert {"book", "test", "qlora", "nlg", "peft"} <= EXTRAS.keys()
    assert PROJECT["scripts"] == {"vbank": "vbank.cli:main"}


def imported(*folders: str) -> set[str]:
    """Top-level modules that the Python files under `folders` import anywhere."""
    modules, own = set(), {"vbank"}
    for folder in folders:
        for path in (ROOT / folder).rglob("*.py"):
            own.add(path.stem)
            for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
                if isinstance(node, ast.Import):
                    modules |= {alias.name.split(".")[0] for alias in node.names}
                elif isinstance(node, ast.ImportFrom) and not node.level and node.module:
                    modules.add(node.module.split(".")[0])
    return modules - set(sys.stdlib_module_names) - own


@pytest.mark.parametrize("folder", ["vbank", "tests", "scripts"])
def test_every_import_is_declared(folder: str) -> None:
    declared = {canonicalize_name(requirement.name) for requirement in requirements()}
    undeclared = {
        module
        for module in imported(folder) - FOLLOW
        if canonicalize_name(DISTRIBUTIONS.get(module, module)) not in declared
    }
    assert undeclared == set()


def test_import_vbank_needs_torch_and_safetensors_alone() -> None:
    heavy = ["transformers", "datasets", "accelerate", "bitsandbytes", "peft", "matplotlib", "pandas", "sklearn"]
    code = f"import sys, vbank; print([name for name in {heavy} + ['typer', 'rich'] if name in sys.modules])"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, cwd=ROOT, check=False)
    assert done.stdout.strip() == "[]", done.stderr


def test_the_example_in_the_readme_runs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    example = re.search(r"```python\n(.*?)```", (ROOT / "README.md").read_text(encoding="utf-8"), re.DOTALL)
    assert example is not None
    monkeypatch.chdir(tmp_path)
    exec(compile(example.group(1), "README.md", "exec"), {})
    assert (tmp_path / "adapter").is_dir()


def test_data_files_are_in_the_package() -> None:
    """Whatever a module reads beside itself is named in the package data, and nothing else is."""
    kinds = {path.suffix for path in (ROOT / "vbank").rglob("*") if path.is_file()} - {".py", ".pyc", ".typed"}
    setup = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["tool"]["setuptools"]
    patterns = setup["package-data"]["vbank"]
    assert kinds <= {Path(pattern).suffix for pattern in patterns}
    assert [pattern for pattern in patterns if not any((ROOT / "vbank").glob(pattern))] == []


def test_no_file_speaks_of_one_machine() -> None:
    """Nor of work left to do; the brackets keep the pattern from finding itself."""
    words = re.compile(r"(?<![\w.])/(?:work|root|home|tmp)/\w|TO[D]O|FIX[M]E|raise Not[I]mplementedError")
    if not (ROOT / ".git").exists():
        pytest.skip("not a checkout: git lists the files")
    listed = subprocess.run(["git", "ls-files", "-z"], capture_output=True, text=True, cwd=ROOT, check=True).stdout
    files = [name for name in listed.split("\0") if name and name not in (".ci/run", "requirements.lock")]
    assert len(files) > 100
    found = [
        name
        for name in files
        if (ROOT / name).is_file() and words.search((ROOT / name).read_text(encoding="utf-8", errors="replace"))
    ]
    assert found == []


def test_no_module_is_longer_than_400_lines() -> None:
    lengths = {path.name: path.read_text("utf-8").count("\n") for path in (ROOT / "vbank").rglob("*.py")}
    assert {name: length for name, length in lengths.items() if length > 400} == {}
