"""Files that installed packages carry: `package://NAME/FILE`."""

import importlib.metadata
import importlib.util
import re
from collections.abc import Iterator
from pathlib import Path, PurePosixPath

from vlm_jax.errors import UserError

SCHEME = "package://"

_WEIGHTS = (".gguf", ".onnx", ".safetensors")


def package_file(reference: str) -> Path:
    """The path that a reference means; nothing of the package is run.

    Args:
        reference: package://NAME/FILE, where NAME is that of an import or of a distribution, and FILE a path inside.

    Raises:
        UserError: if the reference is malformed, the package is not installed, or has no such file.
    """
    name, _, file = reference.removeprefix(SCHEME).partition("/")
    inside = PurePosixPath(file)
    if (
        not re.fullmatch(r"[A-Za-z0-9][A-Za-z0-9._-]*", name)
        or not file
        or inside.is_absolute()
        or ".." in inside.parts
    ):
        raise UserError(f"{reference}: not of the form package://NAME/FILE; name a package and a file inside it")
    directories = list(_directories(name))
    if not directories:
        raise UserError(f"{reference}: the package {name} is not installed; run {_how_to_install(name)}")
    for directory in directories:
        if (directory / inside).exists():
            return directory / inside
    there = sorted(
        path.relative_to(directory).as_posix()
        for directory in directories
        for path in directory.rglob("*")
        if path.suffix in _WEIGHTS
    )
    has = f"it has {', '.join(there[:5])}" if there else "it has no weights"
    raise UserError(f"{reference}: the package {name} holds no file {file}; {has}")


def _directories(name: str) -> Iterator[Path]:
    """Where the packages lie that NAME imports, or that the distribution NAME installs."""
    imports = [name] if name.isidentifier() else []
    imports += [
        module
        for module, distributions in importlib.metadata.packages_distributions().items()
        if _normal(name) in map(_normal, distributions) and module.isidentifier()
    ]
    for module in dict.fromkeys(imports):
        try:
            spec = importlib.util.find_spec(module)
        except (ImportError, ValueError):
            continue
        yield from map(Path, (spec.submodule_search_locations or ()) if spec else ())


def _how_to_install(name: str) -> str:
    """`pip install NAME`, or the extra of this project that brings it."""
    for line in importlib.metadata.requires("vlm-jax") or ():
        required = re.match(r"[A-Za-z0-9._-]+", line)
        extra = re.search(r"extra == ['\"]([^'\"]+)['\"]", line)
        if required and extra and _normal(required[0]) == _normal(name):
            return f"`pip install {required[0]}`, or install vlm-jax with the extra [{extra[1]}]"
    return f"`pip install {name}`"


def _normal(name: str) -> str:
    return re.sub(r"[-_.]+", "-", name).lower()
