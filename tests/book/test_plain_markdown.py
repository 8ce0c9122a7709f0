"""MyST Markdown becomes Markdown that a plain notebook can show."""

import pytest

from bibliography import Reference, read_bibliography
from plain_markdown import Page, translate

HO = Reference("Ho et al.", "2020", "https://example.org/ho", "Ho. Denoising. 2020.")
SONG = Reference("Song", "2021", "", "Song. Score. 2021.")


@pytest.fixture
def page():
    return Page(
        "01_ddpm", "https://example.org/book", ("01_ddpm", "02_guidance"), {"ho": HO, "song": SONG}
    )


CASES = {
    "note": (":::{note}\nLook.\n:::", "> **Note**\n>\n> Look."),
    "note with text on its first line": (
        "```{tip} Look\nhere\n```",
        "> **Tip**\n>\n> Look\n>\n> here",
    ),
    "admonition": (
        ":::{admonition} Read this\n:class: tip\nLook.\n:::",
        "> **Read this**\n>\n> Look.",
    ),
    "theorem": (
        "```{prf:theorem} Tweedie\n:label: tw\nText.\n```",
        "> **Theorem 1.1 (Tweedie)**\n>\n> Text.",
    ),
    "no number": ("```{prf:remark}\n:nonumber:\nText.\n```", "> **Remark**\n>\n> Text."),
    "proof": ("```{prf:proof}\nClear.\n```", "*Proof.* Clear. ∎"),
    "exercise": ("```{exercise} Try\nDo it.\n```", "> **Exercise 1.1 (Try)**\n>\n> Do it."),
    "dropdown": (
        ":::{dropdown} Hint\nThink.\n:::",
        "<details>\n<summary>Hint</summary>\n\nThink.\n\n</details>",
    ),
    "folded box": (
        ":::{admonition} Hint\n:class: dropdown\nThink.\n:::",
        "<details>\n<summary>Hint</summary>\n\nThink.\n\n</details>",
    ),
    "equation": ("```{math}\n:label: e\na = b\n```", "$$\na = b\n\\tag{1.1}\n$$"),
    "equation without a label": ("```{math}\na = b\n```", "$$\na = b\n$$"),
    "labelled dollars": ("$$\na\n$$ (e)", "$$\na\n\\tag{1.1}\n$$"),
    "figure": (
        ":::{figure} a.png\n:alt: a line\n:name: f\nA caption.\n:::",
        "![a line](a.png)\n\n*Fig. 1.1.* A caption.",
    ),
    "image": ("```{image} a.png\n:alt: a line\n```", "![a line](a.png)"),
    "code": ("```{code-block} bash\nls\n```", "```bash\nls\n```"),
    "code is left alone": ("```python\nx = '{eq}`e`'\n```", "```python\nx = '{eq}`e`'\n```"),
    "boxes in a box": (
        "::::{note}\n:::{tip}\nLook.\n:::\n::::",
        "> **Note**\n>\n> > **Tip**\n> >\n> > Look.",
    ),
    "formula in a box": (":::{note}\n$$\na\n= b\n$$\n:::", "> **Note**\n>\n> $$ a = b $$"),
    "anchor": ("(here)=\n## Title", "## Title"),
    "comment": ("a\n% hidden\nb", "a\nb"),
    "dropped": ("a\n\n```{chapter-runtime}\n```\n\nb", "a\n\nb"),
    "cite": ("{cite}`ho,song`", "([Ho et al., 2020](https://example.org/ho); Song, 2021)"),
    "cite in a sentence": ("{cite:t}`song`", "Song (2021)"),
    "bibliography": (
        "{cite}`song`\n\n```{bibliography}\n```",
        "(Song, 2021)\n\n- Song. Score. 2021.",
    ),
    "function": ("{func}`~course_lib.sample`", "`sample`"),
    "class": ("{py:class}`course_lib.Path`", "`course_lib.Path`"),
    "term": ("{term}`the score <score>`", "the score"),
    "math role": ("{math}`x_0`", "$x_0$"),
    "titled reference": ("{ref}`above <here>`", "above"),
    "link to a notebook": (
        "[next](02_guidance.md)",
        "[next](https://example.org/book/02_guidance.ipynb)",
    ),
    "link to a page": ("[n](notation.md#time)", "[n](https://example.org/book/notation.md#time)"),
    "attributes": ("![a](b.png){width=50%}", "![a](b.png)"),
}


@pytest.mark.parametrize(("myst", "plain"), CASES.values(), ids=CASES)
def test_translation(page, myst, plain):
    assert translate(myst, page).strip("\n") == plain


def test_references_before_and_after_what_they_name(page):
    text = "See {eq}`e`, {ref}`s`, {prf:ref}`t`, {numref}`f`, [](#e).\n\n$$\na\n$$ (e)\n"
    text += "\n(s)=\n## Title\n"
    text += "\n```{prf:lemma}\n:label: t\nL.\n```\n\n:::{figure} a.png\n:name: f\nC.\n:::"
    translate(text, page)
    page.counts.clear()
    assert translate(text, page).startswith("See (1.1), Title, Lemma 1.1, Fig. 1.1, (1.1).")


def test_each_kind_counts_for_itself_and_unnumbered_pages_without_chapter(page):
    text = "$$\na\n$$ (a)\n\n$$\nb\n$$ (b)\n\n```{prf:lemma}\nL.\n```"
    assert "\\tag{1.2}" in translate(text, page)
    assert page.counts == {"equation": 2, "lemma": 1}
    assert "\\tag{2}" in translate(text, Page("intro"))


def test_macros_are_written_out_and_longer_names_are_left():
    page = Page("x", macros={"E": "\\mathbb{E}"})
    assert page.expand(r"\E[x] \Eta \E_x") == r"\mathbb{E}[x] \Eta \mathbb{E}_x"


def test_substitutions():
    assert translate("{{ a }} {{b}}", Page("x", substitutions={"a": "1", "b": "2"})) == "1 2"


@pytest.mark.parametrize(
    ("myst", "message"),
    [
        ("```{mermaid}\n```", "directive {mermaid}"),
        ("{kbd}`x`", "role {kbd}"),
        (":::{note}\nnever closed", "not closed"),
        ("{cite}`nobody`", "no entry 'nobody'"),
        ("\\begin{align}\na\n\\end{align}", "math directive"),
    ],
)
def test_what_has_no_plain_form_is_an_error(page, myst, message):
    with pytest.raises(ValueError, match=message):
        translate(myst, page)


def test_bibliography(tmp_path):
    entries = """
    @article{one, author={Ho, Jonathan}, title={A}, journal={J}, year={2020}, doi={10.1/x}}
    @article{two, author={van den Oord, A. and H{\\"a}fner, B.}, title={B}, journal={J},
          year={2021}, eprint={1.2}}
    @misc{three, author={A, A and B, B and C, C}, title={C}, year={2022},
          url={https://example.org}}
    """
    (tmp_path / "r.bib").write_text(entries, encoding="utf-8")
    found = read_bibliography(tmp_path / "r.bib")
    assert found["one"][:3] == ("Ho", "2020", "https://doi.org/10.1/x")
    assert found["two"][:3] == ("van den Oord and Häfner", "2021", "https://arxiv.org/abs/1.2")
    assert found["three"][:3] == ("A et al.", "2022", "https://example.org")
    assert "2022" in found["three"].full
    assert read_bibliography(tmp_path / "none.bib") == {}
