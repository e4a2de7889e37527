"""The pages: their links lead somewhere, their commands are accepted, their Python compiles and imports what exists."""

import ast
import builtins
import importlib
import re
import shlex
from functools import cache
from pathlib import Path

import pytest
import typer

from headrace.cases.command_line import build_app
from headrace.solvers.case_file import CaseReference

ROOT = Path(__file__).resolve().parent.parent
PAGES = [ROOT / "README.md", ROOT / "CONTRIBUTING.md", *sorted((ROOT / "docs").glob("*.md"))]
FOLDERS = "solvers|surrogates|online_training|rom|cases|tests|benchmarks|docs"
OWN = {"FOAM"}  # what a reader of docs/foreign_solvers.md has
EACH = pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)


def text_of(page: Path) -> str:
    return page.read_text(encoding="utf-8")


def blocks(page: Path, language: str) -> list[str]:
    # All of them in their order, as the end of one looks like the beginning of another.
    found = re.findall(r"^```(\w*)\n(.*?)^```$", text_of(page), re.DOTALL | re.MULTILINE)
    return [content for name, content in found if name == language]


def anchors(page: Path) -> set[str]:
    """Return the names that a page's headings get on the web."""
    headings = re.findall(r"^#+ (.*)$", text_of(page), re.MULTILINE)
    return {re.sub(r"[^\w\- ]", "", heading.lower()).strip().replace(" ", "-") for heading in headings}


@cache
def targets(page: Path) -> list[tuple[Path, str]]:
    """Return file and anchor of each link and picture of a page that leads into the repository."""
    found = re.findall(r"\]\(([^)\s#]*)(?:#([^)\s]+))?\)", text_of(page))
    local = [(file, anchor) for file, anchor in found if "://" not in file]
    return [((page.parent / file).resolve() if file else page, anchor) for file, anchor in local]


@EACH
def test_links_and_names_of_files_lead_somewhere(page: Path) -> None:
    for target, anchor in targets(page):
        assert target.exists(), f"{page.name} links to {target}"
        assert not anchor or anchor in anchors(target), f"{target.name} has no heading #{anchor}"
    for name in re.findall(rf"`((?:{FOLDERS})/[\w/.-]+\.(?:py|md|json|png|c|h|f90|npz))`", text_of(page)):
        assert (ROOT / name).exists(), f"{page.name} names {name}"


def test_every_page_is_reached_from_the_readme() -> None:
    reached, left = set(), [ROOT / "README.md"]
    while left:
        page = left.pop()
        if page not in reached and page.suffix == ".md":
            reached.add(page)
            left += [target for target, _ in targets(page)]
    assert set(PAGES) <= reached, sorted(page.name for page in set(PAGES) - reached)


def shell_lines(page: Path) -> list[str]:
    """Return the lines of a page's blocks for a shell, continued ones joined, without comments."""
    lines = "".join(blocks(page, "")).replace("\\\n", " ").splitlines()
    return [re.sub(r"\s+#.*$", "", line).strip() for line in lines]


def call_of(line: str) -> tuple[bool, list[str]] | None:
    """Return whether a line calls a case's script, and the words after the command; None: it is another's line."""
    line = re.sub(r"^(?:mpirun|srun) (?:-\w+ \S+ )*", "", line)
    if match := re.match(r"(?:headrace|python (\w+)\.py)( .*)?$", line):
        return match[1] is not None, shlex.split(match[2] or "")
    return None


@cache
def application(own_case: bool) -> object:
    """Return the command of a shell, or of a user's script."""
    case = CaseReference.of(ROOT / "cases" / "custom_case.py") if own_case else None
    return typer.main.get_command(build_app(case))


@EACH
def test_commands_in_blocks_are_accepted(page: Path) -> None:
    """Verbs, flags, numbers of arguments and kinds of values; nothing is run."""
    for line in shell_lines(page):
        call = call_of(line)
        # In overviews "..." stands for more, and what follows two spaces explains.
        if call is None or "..." in line or "  " in line:
            continue
        command, words = application(call[0]), call[1]
        while (inner := getattr(command, "commands", None)) is not None and words:
            assert words[0] in inner, f"{page.name}: {line}"
            command, words = inner[words[0]], words[1:]
        context = command.make_context(command.name, list(words), resilient_parsing=False)
        assert context.command is command, line


@EACH
def test_flags_in_sentences_exist(page: Path) -> None:
    """Of commands whose other words may stand for something: `headrace VERB ... --flag`."""
    for code in re.findall(r"`([^`\n]+)`", text_of(page)):
        call = call_of(code)
        if call is None or "--" not in code:
            continue
        command, words = application(call[0]), call[1]
        while (inner := getattr(command, "commands", None)) is not None and words and words[0].islower():
            verb = words[0].rstrip(",")  # several may stand in one list
            assert verb in inner, f"{page.name}: {code}"
            command, words = inner[verb], words[1:]
        known = {name for one in command.params for name in one.opts}
        unknown = {word.partition("=")[0] for word in words if word.startswith("--")} - known - {"--help"}
        assert not unknown, f"{page.name}: {code}: {unknown}"


@EACH
def test_benchmarks_are_there_with_their_flags_and_parts(page: Path) -> None:
    shared = text_of(ROOT / "benchmarks" / "lines.py")
    for code in re.findall(r"`python (benchmarks/[a-z][^`]+)`", text_of(page)):
        name, *words = code.split()
        source = text_of(ROOT / name)
        # A part is a function of the script, or of one beside it.
        beside = "".join(map(text_of, (ROOT / name).parent.glob(f"{Path(name).stem}*.py")))
        for flag, value in zip(words, [*words[1:], ""], strict=False):
            if flag.startswith("--"):
                assert f'"{flag}"' in source + shared, f"{page.name}: {code}"
            if flag == "--only":
                named = f'"{value}"' in source or f"def {value}(" in beside
                assert named, f"{page.name}: {code}: no part {value}"


@EACH
def test_python_in_blocks_compiles_and_imports_what_it_uses(page: Path) -> None:
    """What it takes from the library is there; small letters may stand for the reader's own values."""
    bound: set[str] = set(dir(builtins))
    for code in blocks(page, "python"):
        used: set[str] = set()
        for node in ast.walk(ast.parse(code)):
            if isinstance(node, ast.Name):
                (used if isinstance(node.ctx, ast.Load) else bound).add(node.id)
            elif isinstance(node, ast.ClassDef | ast.FunctionDef):
                bound.add(node.name)
            elif isinstance(node, ast.ImportFrom | ast.Import):
                bound |= {(one.asname or one.name).partition(".")[0] for one in node.names}
            if isinstance(node, ast.ImportFrom) and (node.module or "").startswith("headrace"):
                module = importlib.import_module(node.module)
                missing = [one.name for one in node.names if not hasattr(module, one.name)]
                assert not missing, f"{page.name}: {node.module} has no {missing}"
        unknown = {name for name in used - bound if name != name.lower() or name in ("np", "torch")} - OWN
        assert not unknown, f"{page.name}: {unknown} is imported nowhere before"
