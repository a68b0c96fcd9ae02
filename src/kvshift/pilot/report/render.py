"""Results → one HTML page that is complete in itself: no request, no inline style, two hashed blocks."""

from __future__ import annotations

import base64
import hashlib
import json
import re
from functools import cache
from importlib import resources
from typing import Any

from jinja2 import Environment, PackageLoader, StrictUndefined
from markupsafe import Markup, escape

from kvshift.pilot.report import details, figures, headline, questions, scalars
from kvshift.pilot.report.context import Context
from kvshift.pilot.results import Results

_OPTION = re.compile(r"(?<![\w-])--[a-z-]{2,20}(?![\w-])")  # short ones only: they must fit a phone's line
_UNSAFE_IN_SCRIPT = {ord(c): f"\\u{ord(c):04x}" for c in "<>&\u2028\u2029"}


def render(results: Results, language: str | None = None) -> str:
    """The report as HTML, in `language` or the pilot's own."""
    context = Context.of(results, language)
    style, script = _asset("style.css"), _asset("script.js")
    panels = figures.curves(context)
    line, heads = figures.projection(context), scalars.picture(context)
    forest = figures.forest(context)
    hover = {f"curve-{index}": panel["hover"] for index, panel in enumerate(panels)}
    if line:
        hover["projection"] = line["hover"]
    if heads:
        hover["scalars"] = heads["hover"]
    return _template().render(
        c=context,
        r=results,
        t=context.text,
        say=context.say,
        n=context.numbers,
        policy=_policy(style, script),
        style=Markup(style),  # our own files, not the user's words
        script=Markup(script),
        hover=embedded_json(hover),
        verdict=headline.verdict(context),
        facts=_facts(context),
        source=_source(context),
        better=questions.better(context),
        forest=forest,
        curves=panels,
        projection=line,
        saves=questions.saves(context),
        savings=questions.savings(context),
        by_size=questions.by_size(context),
        check=questions.check(context),
        effort=questions.effort(context),
        scalars=heads,
        trust=details.trust(context),
        noted=details.noted(context),
        methods=details.methods(context),
        settings=details.settings(context),
        runs=details.runs(context),
        command=details.reproduction(results),
    )


def embedded_json(value: Any) -> Markup:
    """JSON that may stand inside a <script>: no character that could end it or start markup."""
    return Markup(json.dumps(value, ensure_ascii=False, separators=(",", ":")).translate(_UNSAFE_IN_SCRIPT))


def unbroken(words: str) -> Markup:
    """Text in which no line ends within a command's option, nor right behind its dashes."""
    option = r'<span class="option">\g<0></span>'
    return Markup(_OPTION.sub(option, str(escape(words))))


def _facts(context: Context) -> str:
    results, numbers = context.results, context.numbers
    return context.text(
        "page.facts" if len(results.sizes) > 1 else "page.facts_one_size",
        runs=len(results.runs),
        sizes=len(results.sizes),
        seeds=len(results.seeds),
        tokens=numbers.big(results.tokens),
        time=numbers.duration(results.seconds),
        device=context.device,
    )


def _source(context: Context) -> str:
    sources = context.results.settings.sources
    if not sources:
        return context.text("page.default_source")
    if len(sources) == 1:
        return sources[0]
    return context.text("page.more_sources", first=sources[0], count=len(sources) - 1)


def _policy(style: str, script: str) -> str:
    """A content security policy under which nothing but these two blocks works."""
    hashes = [base64.b64encode(hashlib.sha256(block.encode()).digest()).decode() for block in (style, script)]
    return (
        f"default-src 'none'; style-src 'sha256-{hashes[0]}'; script-src 'sha256-{hashes[1]}'; "
        "img-src data:; base-uri 'none'; form-action 'none'"
    )


@cache
def _asset(name: str) -> str:
    return (resources.files(__package__) / "page" / name).read_text(encoding="utf-8")


@cache
def _template() -> Any:
    environment = Environment(
        loader=PackageLoader("kvshift.pilot.report", "page"),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    environment.filters["unbroken"] = unbroken
    return environment.get_template("report.html.j2")
