"""The files that configure the tools agree with one another."""

import ast
import re
import tomllib
from pathlib import Path
from typing import Any

ROOT = Path(__file__).parents[2]

#: pre-commit names the files itself, those too that ruff is to leave out.
FORCE = " --force-exclude"


def project() -> dict[str, Any]:
    return tomllib.loads((ROOT / "pyproject.toml").read_text())


def in_noxfile(name: str) -> ast.AST:
    """Return the statement of noxfile.py that defines *name*."""
    for statement in ast.parse((ROOT / "noxfile.py").read_text()).body:
        match statement:
            case ast.FunctionDef(name=found) | ast.Assign(targets=[ast.Name(id=found)]):
                if found == name:
                    return statement
    raise LookupError(name)


def commands_of(session: str) -> list[str]:
    """Return the commands that a session of nox runs."""
    return [
        " ".join(ast.literal_eval(argument) for argument in call.args)
        for call in ast.walk(in_noxfile(session))
        if isinstance(call, ast.Call) and ast.unparse(call.func) == "session.run"
    ]


def test_pre_commit_runs_what_nox_lints_with() -> None:
    """A commit that passes is not refused later, by another version or a check more."""
    hooks = (ROOT / ".pre-commit-config.yaml").read_text()
    entries = re.findall(r"entry: (.+)", hooks)
    versions = re.findall(r'additional_dependencies: \["(.+)"\]', hooks)

    assert [entry.replace(FORCE, "") for entry in entries] == commands_of("lint")
    assert len(versions) == len(entries)
    assert set(versions) == set(project()["dependency-groups"]["lint"])


def test_each_python_that_is_promised_is_tested() -> None:
    """The matrix has the versions of the classifiers."""
    prefix = "Programming Language :: Python :: "
    classifiers = project()["project"]["classifiers"]
    promised = [c.removeprefix(prefix) for c in classifiers if c.startswith(prefix)]
    matrix = in_noxfile("MATRIX")
    assert isinstance(matrix, ast.Assign)

    assert list(ast.literal_eval(matrix.value)) == promised
