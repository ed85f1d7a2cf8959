"""The wheel holds every package, and both apps load from an unpacked Flower bundle."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
import tomllib
import zipfile
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent
PACKAGES = ("pm1_core", "strategies", "client", "server", "simulations", "configs")


def _checkout(to: Path) -> Path:
    """The repository's own files, without what was built or run in it."""
    to.mkdir()
    for name in (*PACKAGES, "pyproject.toml", "README.md", "LICENSE"):
        source = ROOT / name
        if source.is_dir():
            shutil.copytree(source, to / name, ignore=shutil.ignore_patterns("__pycache__"))
        else:
            shutil.copy(source, to / name)
    return to


def _python(code: str, path: Path, cwd: Path) -> str:
    """Output of `code` with nothing of ours on the path but `path`."""
    command = [sys.executable, "-P", "-c", f"import sys; sys.path[:0] = [{str(path)!r}]\n{code}"]
    done = subprocess.run(command, capture_output=True, text=True, cwd=cwd, env=os.environ, check=False)
    assert done.returncode == 0, done.stderr
    return done.stdout


def test_the_distribution_lists_every_package_there_is() -> None:
    listed = tomllib.loads((ROOT / "pyproject.toml").read_text())["tool"]["setuptools"]["packages"]
    there = {
        ".".join(path.parent.relative_to(ROOT).parts)
        for package in PACKAGES
        for path in (ROOT / package).rglob("__init__.py")
    }
    assert set(listed) == there


@pytest.mark.slow
def test_the_wheel_installs_with_configuration_and_templates(tmp_path: Path) -> None:
    source = _checkout(tmp_path / "source")
    build = [sys.executable, "-m", "pip", "wheel", "--no-deps", "--no-build-isolation", "--quiet"]
    subprocess.run([*build, "--wheel-dir", str(tmp_path), str(source)], check=True, capture_output=True)
    (wheel,) = tmp_path.glob("pm1-*.whl")
    zipfile.ZipFile(wheel).extractall(tmp_path / "installed")
    names = zipfile.ZipFile(wheel).namelist()
    assert "configs/study/ukb_eyepacs.yaml" in names
    assert "simulations/templates/report.html.j2" in names
    assert not any(name.startswith("tests/") for name in names)
    code = "import configs.compose as c; print(c.__file__, c.load('simulation', [])['model']['size'])"
    printed = _python(code, tmp_path / "installed", tmp_path)
    assert str(tmp_path) in printed
    assert printed.split()[-1] == "small"


@pytest.mark.slow
def test_both_apps_load_from_a_flower_bundle(tmp_path: Path) -> None:
    source = _checkout(tmp_path / "source")
    flwr = Path(sys.executable).with_name("flwr")
    subprocess.run([str(flwr), "build"], cwd=source, check=True, capture_output=True)
    (bundle,) = source.glob("*.fab")
    assert bundle.stat().st_size < 10e6
    zipfile.ZipFile(bundle).extractall(tmp_path / "bundle")
    assert not (tmp_path / "bundle" / "simulations").exists()
    code = "import server.app, client.app; print(server.app.__file__, type(server.app.app).__name__)"
    printed = _python(code, tmp_path / "bundle", tmp_path)
    assert str(tmp_path / "bundle") in printed
    assert printed.split()[-1] == "ServerApp"
