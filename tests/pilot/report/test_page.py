"""What the page says, for every kind of outcome."""

from __future__ import annotations

import html
import re
from pathlib import Path

import pytest
from rich.console import Console

from kvshift.pilot.report import headline, print_summary, questions, scalars
from kvshift.pilot.report.context import Context
from kvshift.pilot.report.details import command, reproduction, settings, trust
from kvshift.pilot.report.render import render
from kvshift.pilot.results import Estimate
from kvshift.pilot.settings import PilotSettings
from kvshift.shift import TAP_LEARNING_RATE, KVShiftConfig


def said(results, language: str = "en") -> str:
    """The page's words, without markup, style and script."""
    page = re.sub(r"<(style|script)\b.*?</\1>", "", render(results, language), flags=re.S)
    return re.sub(r"\s+", " ", html.unescape(re.sub(r"<[^>]+>", " ", page)))


def test_every_kind_renders_in_both_languages_without_leftovers(samples) -> None:
    for kind in samples.KINDS:
        for language in ("en", "ja"):
            words = said(samples.results(kind), language)
            assert not re.search(r"\{\w*\}|None(?! of the)|nan|Undefined|\binf\b", words), (kind, language)


@pytest.mark.parametrize(
    ("kind", "word", "answer"),
    [
        ("adopt", "Adopt", "Yes. After the same training data"),
        ("bigger_pilot", "Run a bigger pilot", "Undecided. The measured difference"),
        ("no_benefit", "No benefit seen", "Undecided. The measured difference"),
        ("harmful", "Harmful", "No, it is worse."),
        ("missing", "No comparison", "This cannot be said"),
        ("self_test", "Self-test", "Undecided."),
        ("one_pair", "Run a bigger pilot", "there is no interval"),
    ],
)
def test_the_verdict_and_the_first_answer(samples, kind: str, word: str, answer: str) -> None:
    context = Context.of(samples.results(kind), "en")
    verdict = headline.verdict(context)
    assert verdict["word"] == word
    assert answer in questions.better(context)
    assert f"Verdict: {word}" in said(context.results).replace(" : ", ": ").replace("  ", " ")


def test_undecided_is_said_wherever_an_interval_spans_zero(samples) -> None:
    context = Context.of(samples.results("bigger_pilot"), "en")
    verdict = headline.verdict(context)
    assert verdict["undecided"]
    assert verdict["spans_zero"]
    assert all(card["undecided"] for card in verdict["numbers"] if not card["missing"])
    assert "Undecided" in questions.saves(context)
    assert "判断できず" in said(context.results, "ja")
    clear = headline.verdict(Context.of(samples.results("adopt"), "en"))
    assert not clear["undecided"]
    assert not any(card["undecided"] for card in clear["numbers"])


def test_the_fourth_key_number_is_money_only_with_a_price(samples) -> None:
    with_price = headline.verdict(Context.of(samples.results("adopt_cost"), "en"))["numbers"]
    without = headline.verdict(Context.of(samples.results("adopt"), "en"))["numbers"]
    assert with_price[3]["value"] == "$374"
    assert without[3]["title"] == "Model size saved"


def test_a_gain_is_told_as_probability(samples) -> None:
    results = samples.results("adopt").model_copy(
        update={"overall_gain": Estimate(value=0.1, low=0.05, high=0.15)}
    )
    assert "11% more probability" in questions.better(Context.of(results, "en"))  # e^0.1 = 1.105


def test_diverged_runs_are_counted_and_named(samples) -> None:
    words = said(samples.results("diverged"))
    assert "2 of 18 training runs did not end well (diverged: 2)" in words
    assert "The loss became NaN at step 211." in words
    assert "None of the 18" in said(samples.results("missing"))


def test_the_threats_are_those_that_apply(samples) -> None:
    results = samples.results("adopt")
    here = " ".join(trust(Context.of(results, "en")))
    assert "Timing on a processor" in here
    assert "3 starting points" in here
    assert "Repeated text" not in here
    assert "One size only" not in here
    changed = results.model_copy(
        update={
            "device": "NVIDIA H100",
            "seeds": list(range(5)),
            "data": {"train_tokens": results.tokens // 3},
        }
    )
    there = " ".join(trust(Context.of(changed, "en")))
    assert "one kind of machine" in there
    assert "starting points" not in there
    assert "3.0 times" in there
    assert "One size only" in " ".join(trust(Context.of(samples.results("one_size"), "en")))


def test_quadrants_stand_beside_the_papers(samples) -> None:
    results = samples.results("adopt")
    drawn = scalars.picture(Context.of(results, "en"))
    assert [row[3] for row in drawn["table"]["rows"]] == ["50", "17", "9", "52"]
    assert sum(int(row[1]) for row in drawn["table"]["rows"]) == len(results.taps)
    # Induction heads (previous key, current value) all lie right of and below the middle.
    induction = [tap for tap in results.taps if tap.keys[1] > tap.keys[0] and tap.values[0] > tap.values[1]]
    assert 0 < len(induction) < len(results.taps)
    alone = results.model_copy(update={"taps": induction, "quadrants": {"previous_current": len(induction)}})
    drawn = scalars.picture(Context.of(alone, "en"))
    assert all(p["x"] > drawn["middle"][0] and p["y"] > drawn["middle"][1] for p in drawn["hover"])
    assert scalars.picture(Context.of(samples.results("values_only"), "en")) is None


def test_the_command_brings_back_the_settings() -> None:
    asked = PilotSettings(
        sources=("my texts",), budget_seconds=5400, seeds=(7,), price_per_hour=2.5, language="ja"
    )
    assert command(asked) == "kvshift pilot 'my texts' --budget 1h30m --seeds 7, --price 2.5 --lang ja"


def test_the_next_command_keeps_the_text_and_frees_what_the_budget_should_buy(samples) -> None:
    results = samples.results("bigger_pilot")
    asked = results.settings.model_copy(update={"sources": ("texts",), "tokens": 1000})
    verdict = headline.verdict(Context.of(results.model_copy(update={"settings": asked}), "en"))
    assert verdict["next"]["command"] == "kvshift pilot texts --budget 41m --out kvshift-pilot-41m"


def test_the_command_to_reproduce_gives_what_the_plan_chose(samples) -> None:
    results = samples.results("adopt")
    assert results.settings.sizes is results.settings.tokens is None
    line = reproduction(results)
    asked = (
        f"--sizes {','.join(size.name for size in results.sizes)} --seeds 0,1,2 --tokens {results.tokens} "
    )
    assert asked in line
    for name in ("sequence-length", "batch-size"):
        assert f"--{name} {results.recipe[name.replace('-', '_')]}" in line
    assert line.endswith("--out kvshift-pilot-again")
    assert "compile" not in line
    on_gpu = results.model_copy(
        update={"recipe": {**results.recipe, "device": "cuda", "compile": True}, "seconds": 3600.0}
    )
    assert "--budget 2h " in reproduction(on_gpu)
    assert "--compile" in reproduction(on_gpu)
    assert "--multiplier 10.0" in line  # the sample is of when that was the default
    (vanilla, shifted) = results.arms
    now = shifted.model_copy(update={"shift": KVShiftConfig().to_dict()})
    assert "--multiplier" not in reproduction(results.model_copy(update={"arms": (vanilla, now)}))
    own = results.settings.model_copy(update={"model": Path("config.json")})
    assert "--sizes" not in reproduction(results.model_copy(update={"settings": own}))
    assert line in said(results)


def test_the_settings_tell_how_fast_the_taps_learn(samples) -> None:
    results = samples.results("adopt")
    vanilla, shifted = results.arms

    def told(**changes: float | None) -> set[tuple[str, str]]:
        shift = {**(shifted.shift or {}), **changes}
        arms = (vanilla, shifted.model_copy(update={"shift": shift}))
        groups = settings(Context.of(results.model_copy(update={"arms": arms}), "en"))
        return {(label, value) for group in groups for label, _, value in group["rows"]}

    assert ("kvshift: lr_multiplier", "3.0") in told(lr_multiplier=3.0)
    assert ("kvshift: learning_rate", str(TAP_LEARNING_RATE)) in told(lr_multiplier=None)


def test_a_loss_is_told_with_an_interval_of_the_same_sign(samples) -> None:
    results = samples.results("adopt_cost")
    worse = Estimate(value=-0.2, low=-0.3, high=-0.1)
    top = results.by_size[-1].model_copy(update={"time_saved": worse})
    thousand = Estimate(value=-200.0, low=-300.0, high=-100.0)
    cost = results.cost.model_copy(update={"saved_per_thousand": thousand})
    check = results.check.model_copy(update={"gain": worse})
    slope = results.projection.model_copy(update={"slope_per_tenfold": worse})
    changed = results.model_copy(
        update={
            "by_size": [*results.by_size[:-1], top],
            "cost": cost,
            "check": check,
            "projection": slope,
            "overall_gain": worse,
        }
    )
    context = Context.of(changed, "en")
    assert headline.verdict(context)["numbers"][3]["interval"] == "95% interval $100 to $300"
    time, money = questions.savings(context)[1], questions.savings(context)[3]
    assert (time["value"], time["interval"]) == ("20% lost", "95% interval 10% to 30%")
    assert money["interval"] == "95% interval $100 to $300"
    words = said(changed)
    for sentence in (
        "0.200 nats per token above",
        "shrinks by about 0.200 nats per token",
        "0.200 nats per token higher",
    ):
        assert re.search(sentence + r"[^.]*\(95% interval \+0\.100 to \+0\.300\)", words), sentence


def test_the_machine_is_named_in_the_pages_language(samples) -> None:
    results = samples.results("adopt").model_copy(update={"device": "CPU, 2 threads"})
    assert "CPU、2スレッド" in said(results, "ja")
    assert "threads" not in said(results.model_copy(update={"warnings": []}), "ja")
    assert "CPU, 2 threads" in said(results)
    gpu = results.model_copy(update={"device": "NVIDIA H100"})
    assert "NVIDIA H100" in said(gpu, "ja")


def test_a_reason_from_a_later_version_still_reads(samples) -> None:
    results = samples.results("adopt")
    strange = results.verdict.model_copy(update={"reason": "not_known_yet", "values": {}})
    verdict = headline.verdict(Context.of(results.model_copy(update={"verdict": strange}), "en"))
    assert verdict["head"].startswith("Adopt KV shift")


@pytest.mark.parametrize("language", ["en", "ja"])
def test_the_terminal_says_the_same(samples, language: str) -> None:
    for kind in samples.KINDS:
        results = samples.results(kind)
        console = Console(record=True, width=90, file=open("/dev/null", "w"))  # noqa: SIM115
        print_summary(results, console, language)
        text = re.sub(r"\s", "", console.export_text())
        verdict = headline.verdict(Context.of(results, language))
        assert re.sub(r"\s", "", verdict["head"]) in text, kind
        assert all(re.sub(r"\s", "", card["value"]) in text for card in verdict["numbers"])


def test_the_terminal_takes_user_text_literally(samples) -> None:
    results = samples.results("bigger_pilot")
    asked = results.settings.model_copy(update={"sources": ("[red]x[/]",)})
    console = Console(record=True, width=200, file=open("/dev/null", "w"))  # noqa: SIM115
    print_summary(results.model_copy(update={"settings": asked}), console, "en")
    assert "[red]x[/]" in console.export_text()
