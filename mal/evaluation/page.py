"""The index page of a preview: one file, no script or font from elsewhere."""

from collections.abc import Sequence
from dataclasses import dataclass
from html import escape
from string import Template
from urllib.parse import quote

Colour = tuple[int, int, int]


@dataclass(frozen=True)
class Card:
    """One picture on the page."""

    picture: str
    """Path relative to the page."""
    width: int
    height: int
    title: str
    objects: Sequence[tuple[str, float | None, Colour]]
    """Name, score and colour of each object."""


def render(title: str, figures: Sequence[tuple[str, str]], cards: Sequence[Card], problems: Sequence[str]) -> str:
    """The page as HTML.

    Args:
        title: heading; any text, as are all others: everything is escaped here.
        figures: number and what it counts, for the line below the heading.
        cards: in the order of the file.
        problems: what could not be drawn, one line each.
    """
    trouble = ""
    if problems:
        items = "".join(f"<li>{escape(line)}</li>" for line in problems)
        trouble = f'<details class="problems"><summary>{len(problems)} not drawn</summary><ul>{items}</ul></details>'
    return _PAGE.substitute(
        title=escape(title),
        figures="".join(f"<div><b>{escape(number)}</b><span>{escape(name)}</span></div>" for number, name in figures),
        problems=trouble,
        cards="\n".join(_card(at, card) for at, card in enumerate(cards)),
    )


def _card(at: int, card: Card) -> str:
    scores = [score for _, score, _ in card.objects if score is not None]
    chips = "".join(
        f'<li><i style="background:rgb{colour}"></i>{escape(name)}'
        + (f"<em>{score:.2f}</em>" if score is not None else "")
        + "</li>"
        for name, score, colour in card.objects
    )
    worst = f"{min(scores):.4f}" if scores else "2"  # without a score: after all others
    return (
        f'<figure data-order="{at}" data-worst="{worst}" data-count="{len(card.objects)}">'
        f'<a href="{quote(card.picture)}"><img loading="lazy" src="{quote(card.picture)}" '
        f'width="{card.width}" height="{card.height}" alt="{escape(card.title)}"></a>'
        f"<figcaption><b>{escape(card.title)}</b><ul>{chips}</ul></figcaption></figure>"
    )


_PAGE = Template("""<!doctype html>
<html lang="en">
<head>
<meta charset="utf-8">
<meta name="viewport" content="width=device-width, initial-scale=1">
<title>$title</title>
<style>
:root { color-scheme: dark; --ground: #131518; --card: #1c1f24; --line: #2b2f36; --text: #e9ebee; --quiet: #949ba6; }
* { box-sizing: border-box; margin: 0; }
body { background: var(--ground); color: var(--text); font: 15px/1.5 system-ui, Helvetica, Arial, sans-serif; }
header, main { max-width: 1680px; margin: auto; padding: 0 28px; }
header { padding-top: 40px; padding-bottom: 28px; display: flex; flex-wrap: wrap; gap: 20px 40px; align-items: end; }
h1 { font-size: 26px; font-weight: 600; letter-spacing: -.01em; flex: 1 1 auto; overflow-wrap: anywhere; }
h1 small { display: block; font-size: 13px; font-weight: 500; color: var(--quiet); letter-spacing: 0; }
.figures { display: flex; flex-wrap: wrap; gap: 12px 32px; }
.figures b { display: block; font-size: 22px; font-weight: 600; line-height: 1.2; font-variant-numeric: tabular-nums; }
.figures span { font-size: 13px; color: var(--quiet); }
select { background: var(--card); color: var(--text); font: inherit; padding: 8px 12px; }
select { border: 1px solid var(--line); border-radius: 8px; }
main { display: grid; grid-template-columns: repeat(auto-fill, minmax(min(420px, 100%), 1fr)); }
main { gap: 22px; padding-bottom: 60px; }
figure { background: var(--card); border: 1px solid var(--line); border-radius: 12px; overflow: hidden; }
figure a { display: block; background: #0c0d0f; }
figure img { display: block; width: 100%; height: auto; aspect-ratio: 4 / 3; object-fit: contain; }
figcaption { padding: 12px 16px 15px; }
figcaption b { font-weight: 600; overflow-wrap: anywhere; }
ul { list-style: none; padding: 0; }
figcaption ul { display: flex; flex-wrap: wrap; gap: 5px 14px; margin-top: 6px; }
figcaption ul { font-size: 13px; color: #c3c8d0; max-height: 96px; overflow: auto; }
i { display: inline-block; width: 9px; height: 9px; border-radius: 50%; margin-right: 6px; }
em { font-style: normal; color: var(--quiet); margin-left: 5px; font-variant-numeric: tabular-nums; }
.problems { flex-basis: 100%; color: #f0b16a; font-size: 14px; }
.problems summary { cursor: pointer; }
.problems ul { padding: 8px 0 0 18px; color: var(--quiet); max-height: 240px; overflow: auto; }
dialog { border: 0; padding: 0; background: transparent; max-width: 100vw; max-height: 100vh; margin: auto; }
dialog:focus-visible { outline: 0; }
dialog::backdrop { background: rgb(8 9 10 / .92); }
dialog img { display: block; max-width: 96vw; max-height: 96vh; border-radius: 6px; cursor: zoom-out; }
</style>
</head>
<body>
<header>
<h1><small>mal preview</small>$title</h1>
<div class="figures">$figures</div>
<select id="sort" aria-label="Order of the pictures">
<option value="order">in the file's order</option>
<option value="worst">worst score first</option>
<option value="count">most objects first</option>
</select>
$problems
</header>
<main>
$cards
</main>
<dialog><img alt=""></dialog>
<script>
const main = document.querySelector("main"), dialog = document.querySelector("dialog");
const large = dialog.querySelector("img");
const cards = () => [...main.querySelectorAll("figure")];
document.getElementById("sort").onchange = event => {
  const key = event.target.value, sign = key === "count" ? -1 : 1;
  main.append(...cards().sort((a, b) => sign * (a.dataset[key] - b.dataset[key]) || a.dataset.order - b.dataset.order));
};
let shown = 0;
const show = at => {
  const links = [...main.querySelectorAll("a")];
  shown = (at + links.length) % links.length;
  large.src = links[shown].href;
};
main.onclick = event => {
  const link = event.target.closest("a");
  if (!link || event.ctrlKey || event.metaKey) return;
  event.preventDefault();
  show([...main.querySelectorAll("a")].indexOf(link));
  dialog.showModal();
};
dialog.onclick = () => dialog.close();
dialog.onkeydown = event => {
  if (event.key === "ArrowRight") show(shown + 1);
  if (event.key === "ArrowLeft") show(shown - 1);
};
</script>
</body>
</html>
""")
