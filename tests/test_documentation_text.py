"""README.md and docs/ name only what exists: files, links, settings and the commands that the tests leave out."""

import re
import shlex

import pytest

from main import _parser
from tests.documented_commands import BLOCKS, NOT_RUN, OTHER_LANGUAGES, PAGES, ROOT, SHELLS, fenced_blocks


def test_the_table_names_only_commands_that_are_shown():
    shown = {c for block in BLOCKS for c in block.commands}
    assert not set(NOT_RUN) - shown, "no page shows these commands any more"


def test_reasons_name_tests_that_exist():
    named = {m for reason in NOT_RUN.values() for m in re.findall(r"tests/[\w/]+(?:\.py)?", reason)}
    assert named and all((ROOT / name).exists() for name in named), named


def test_every_block_says_its_language():
    found = {(page.name, line, language) for page in PAGES for line, language, _ in fenced_blocks(page)}
    assert not {f for f in found if f[2] not in (*SHELLS, *OTHER_LANGUAGES)}
    for page in PAGES:
        fences = [line for line in page.read_text().splitlines() if line.lstrip().startswith(("```", "~~~"))]
        assert len(fences) == 2 * len(fenced_blocks(page)), f"{page.name} has a block that this test does not see"


def test_commands_that_are_not_run_have_arguments_that_exist():
    for command in NOT_RUN:
        words = shlex.split(command)
        if "main.py" in words:
            _parser().parse_args(words[words.index("main.py") + 1 :])
        elif (script := next((w for w in words if w.startswith("benchmarks/")), None)) is not None:
            text = (ROOT / script).read_text()
            assert all(f'"{w}"' in text for w in words if w.startswith("--")), command


def test_settings_and_targets_that_the_pages_name_exist():
    text = "\n".join(page.read_text() for page in PAGES)
    targets = set(re.findall(r"^([\w-]+):", (ROOT / "Makefile").read_text(), re.MULTILINE))
    assert set(re.findall(r"[`\n]make ([a-z][\w-]*)", text)) <= targets
    known = set(re.findall(r"conf\.get\(\"(\w+)\"", (ROOT / "apps/sam2/main.py").read_text()))
    known |= set(re.findall(r"--conf (\w+)", (ROOT / "apps/sam2/main.py").read_text()))
    named = set(re.findall(r"--conf (\w+)", text)) - {"KEY"}
    assert named <= known, named - known
    options = (ROOT / "docs/options.md").read_text()
    assert all(f"`{key}`" in options for key in known), "docs/options.md lists all settings"


def test_files_that_the_pages_name_exist():
    for page in PAGES:
        for name in re.findall(r"`((?:lib|tests|benchmarks|deploy|docs)/[\w./@-]+\.\w+)`", page.read_text()):
            assert (ROOT / name).exists() or name == "deploy/.env", f"{page.name}: {name}"


def anchor_of(heading: str) -> str:
    """Return the anchor that GitHub gives a heading.

    >>> anchor_of("How do I run it: twice?")
    'how-do-i-run-it-twice'
    """
    return re.sub(r"[^\w\- ]", "", heading.strip().lower()).replace(" ", "-")


@pytest.mark.parametrize("page", [*PAGES, ROOT / "sample-data" / "README.md"], ids=lambda p: str(p.relative_to(ROOT)))
def test_links_lead_somewhere(page):
    prose = re.sub(r"^```.*?^```$", "", page.read_text(), flags=re.MULTILINE | re.DOTALL)
    for link in re.findall(r"\]\(([^)\s]+)\)", prose):
        if re.match(r"[a-z]+:", link):
            continue
        name, _, anchor = link.partition("#")
        target = page.parent / name if name else page
        assert target.exists(), link
        if anchor:
            headings = re.findall(r"^#+ (.+)$", target.read_text(), re.MULTILINE)
            assert anchor in map(anchor_of, headings), link


def test_the_readme_is_short_and_leads_to_every_page():
    readme = (ROOT / "README.md").read_text()
    assert len(readme.splitlines()) <= 150
    assert all(f"(docs/{page.name}" in readme for page in PAGES[1:])


def test_pages_are_written_by_task():
    for page in PAGES[1:]:
        headings = re.findall(r"^#+ (.+)$", page.read_text(), re.MULTILINE)
        assert all(h.endswith("?") for h in headings), (page.name, headings)


def test_no_page_names_a_path_of_a_developer():
    for page in PAGES:
        assert not re.search(r"/(work|home|Users|tmp)/", page.read_text()), page.name
