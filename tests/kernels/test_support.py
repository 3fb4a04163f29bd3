"""The docs say what the code says about what each backend supports."""

from pathlib import Path

from pallas_kernels.paged_attention.support import BEGIN, END, markdown

DOCS = Path(__file__).resolve().parents[2] / "docs/kernels.md"


def test_table_in_the_docs_is_what_the_backends_answer() -> None:
    _, _, rest = DOCS.read_text("utf-8").partition(f"{BEGIN}\n")
    written, _, _ = rest.partition(END)
    assert written == markdown(), f"run: {BEGIN.strip('<!-> ')}"
