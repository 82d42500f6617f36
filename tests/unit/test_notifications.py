"""Notifications: the message in each format, that it has no secret, and that no receiver can delay or fail the run."""

import json
import re
import socket
import time
from pathlib import Path

import pytest

from ngrpo.checking.examination import examine_quickly
from ngrpo.config import load_config
from ngrpo.config.notifications import NotificationConfig
from ngrpo.errors import ConfigError, DataError, StoreError, UserCodeError
from ngrpo.notifications.events import Event, decided
from ngrpo.notifications.messages import TemplateError, payload
from ngrpo.notifications.reasons import reason_of
from ngrpo.notifications.webhooks import announce, not_set
from ngrpo_kfp.pipelines.cli.options import PRESETS
from receiver import SECRET_PATH, receiver

WEBHOOK = "NGRPO_TEST_WEBHOOK"
PROMOTED = Event("promoted", "run-1", "arithmetic", 4, "mean@16 is better", {"gain in points": 1.5, "champion": 4})


def settings(**given):
    return NotificationConfig(url_from=WEBHOOK, **given)


def texts(value):
    """Yield every text in a document."""
    if isinstance(value, str):
        yield value
    for each in value.values() if isinstance(value, dict) else value if isinstance(value, list) else ():
        yield from texts(each)


# --- formats ------------------------------------------------------------------------------------------------------------


def test_the_generic_form_has_every_field():
    document = json.loads(payload(settings(), PROMOTED))
    assert document.pop("time").startswith("20")
    assert document == {
        "layout": 1,
        "source": "ngrpo",
        "event": "promoted",
        "run": "run-1",
        "model": "arithmetic",
        "version": 4,
        "summary": "mean@16 is better",
        "facts": {"gain in points": 1.5, "champion": 4},
    }


def test_slack_gets_a_text_and_blocks_within_its_limits():
    long = Event("kept", "r" * 400, None, None, "s" * 9000, {f"fact {n}": "v" * 5000 for n in range(30)})
    for event in (PROMOTED, long):
        message = json.loads(payload(settings(format="slack"), event))
        header, *sections = message["blocks"]
        assert message["text"].startswith(header["text"]["text"])
        assert header["type"] == "header"
        assert len(header["text"]["text"]) <= 150
        assert {section["type"] for section in sections} == {"section"}
        for section in sections:
            assert 1 <= len(section.get("fields", [0])) <= 10
            assert all(1 <= len(field["text"]) <= 2000 for field in section.get("fields", []))
    assert len(message["blocks"]) <= 50
    assert "arithmetic version 4" in str(payload(settings(format="slack"), PROMOTED))


def test_teams_gets_one_adaptive_card():
    message = json.loads(payload(settings(format="teams"), PROMOTED))
    (attachment,) = message["attachments"]
    assert (message["type"], attachment["contentType"]) == ("message", "application/vnd.microsoft.card.adaptive")
    card = attachment["content"]
    assert (card["type"], card["version"]) == ("AdaptiveCard", "1.4")
    shown = [run["text"] for line in card["body"] for run in line["inlines"]]
    assert shown[:2] == ["new champion: arithmetic version 4", "mean@16 is better"]
    assert "gain in points: 1.5" in shown
    assert len(payload(settings(format="teams"), PROMOTED)) < 28_000


HOSTILE = "<!channel> <https://evil.example|click> [click](https://evil.example) *b* &amp; @all\u202e\x07\n# head"


@pytest.mark.parametrize("form", ["slack", "teams"])
def test_what_users_write_is_no_markup(form):
    event = Event("rolled_back", HOSTILE, HOSTILE, 2, HOSTILE, {HOSTILE: HOSTILE})
    message = json.loads(payload(settings(format=form), event))
    assert all(text.isprintable() for text in texts(message))
    if form == "slack":
        assert not any("<" in text or ">" in text for text in texts(message)), "<!channel> would call everyone"
        assert message["mrkdwn"] is False
        kinds = {text["type"] for block in message["blocks"] for text in block.get("fields", [block.get("text")])}
        assert kinds == {"plain_text"}
    else:
        # A TextBlock or a FactSet would read Markdown; a TextRun does not.
        lines = message["attachments"][0]["content"]["body"]
        assert {line["type"] for line in lines} == {"RichTextBlock"}
        assert {run["type"] for line in lines for run in line["inlines"]} == {"TextRun"}


def test_a_template_makes_the_json_that_is_sent():
    own = settings(template='{"text": {{ (event ~ ": " ~ summary) | tojson }}, "gain": {{ facts["gain in points"] }}}')
    assert json.loads(payload(own, PROMOTED)) == {"text": "promoted: mean@16 is better", "gain": 1.5}


@pytest.mark.parametrize(
    "template",
    [
        '{"text": "{{ summary }}"}',
        '{"text": {{ no_such_name | tojson }}}',
        '{"text": {{ facts["no such"].more }}}',
        '{{ "".__class__.__mro__[1].__subclasses__() }}',
        "{{ 1 / 0 }}",
        "{% for i in range(10 ** 9) %}x{% endfor %}",
    ],
)
def test_a_template_that_goes_wrong_is_said_and_quotes_nothing(template):
    event = Event("kept", None, "m", 1, 'say "hello"')
    with pytest.raises(TemplateError) as refused:
        payload(settings(template=template), event)
    assert "hello" not in str(refused.value)


# --- no secret ----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("form", ["json", "slack", "teams"])
def test_no_credential_is_in_a_message(form, monkeypatch):
    monkeypatch.setenv("HF_TOKEN", "a-token-of-no-known-form")
    monkeypatch.setenv(WEBHOOK, f"https://hooks.example{SECRET_PATH}")
    secret = f"a-token-of-no-known-form https://user:pa55word@host https://hooks.example{SECRET_PATH} hf_abcdefghijklmnopqrst"
    event = Event("failed", secret, secret, None, secret, {secret: secret, "where": secret})
    sent = payload(settings(format=form), event).decode()
    for part in ("a-token-of-no-known-form", "pa55word", SECRET_PATH, "hf_abcdefghijklmnopqrst"):
        assert part not in sent


@pytest.mark.parametrize(
    "error",
    [
        DataError("train.jsonl, row 3: answer 'the moon' cannot be graded"),
        UserCodeError("training.rewards.mine: my.reward raised ValueError: bad completion the moon"),
        ValueError("bad completion the moon"),
    ],
)
def test_what_may_quote_data_is_told_by_its_kind_only(error):
    assert "moon" not in reason_of(error)
    assert type(error).__name__ in reason_of(error)


def test_what_names_settings_and_services_is_told_in_full():
    assert reason_of(StoreError("object store s3://a/b cannot be reached")) == "object store s3://a/b cannot be reached"


# --- settings -----------------------------------------------------------------------------------------------------------


def load(*overrides):
    return load_config(PRESETS / "tiny.toml", overrides)


@pytest.mark.parametrize(
    ("setting", "named"),
    [
        (f"url_from=https://hooks.example{SECRET_PATH}", "url_from: "),
        ("url_from=SLACK_ADDRESS", "url_from: the address of a webhook is a secret"),
        (f"url=https://hooks.example{SECRET_PATH}", "url: unknown setting"),
        ("on=[]", "on: "),
        ('on=["promotion"]', "on"),
        ("format=discord", "format: "),
        ("timeout=0", "timeout: "),
        ("timeout=3600", "timeout: "),
        ("template=missing.json.j2", "template: no such file"),
        ('template="{{ summary"', "template: no Jinja template"),
    ],
)
def test_a_wrong_setting_is_refused_by_name_and_no_address_is_shown(setting, named):
    with pytest.raises(ConfigError) as refused:
        load(
            f"notifications.team.{setting}",
            *([] if setting.startswith("url") else [f"notifications.team.url_from={WEBHOOK}"]),
        )
    assert f"notifications.team.{named}" in str(refused.value)
    assert SECRET_PATH not in str(refused.value)


def test_an_address_in_the_wrong_table_is_not_shown():
    with pytest.raises(ConfigError) as refused:
        load(f"notifications.team=https://hooks.example{SECRET_PATH}")
    assert SECRET_PATH not in str(refused.value)
    with pytest.raises(ConfigError) as refused:
        load(f"notifications=https://hooks.example{SECRET_PATH}")
    assert SECRET_PATH not in str(refused.value)


def test_a_template_goes_with_json_only():
    with pytest.raises(ConfigError, match=r"notifications\.team\.template: goes with format='json'"):
        load(
            f"notifications.team.url_from={WEBHOOK}",
            'notifications.team.template="{{ summary }}"',
            "notifications.team.format=slack",
        )


def test_settings_of_runs_without_notifications_are_what_they_were():
    assert "notifications" not in load().model_dump(mode="json")


def test_a_name_that_no_event_has_is_refused_before_a_run(tmp_path):
    def said(text: str) -> list[str]:
        (tmp_path / "own.j2").write_text(text)
        overrides = [f"notifications.team.{each}" for each in (f"url_from={WEBHOOK}", f"template={tmp_path}/own.j2")]
        return [finding.line for finding in examine_quickly(load_config(PRESETS / "tiny.toml", overrides)).errors]

    assert said('{% set a = run %}{"t": {{ [a, facts["x"], range(2) | list] | tojson }}}') == []
    assert said('{"t": {{ sumary | tojson }}}') == [
        "notifications.team.template: unknown sumary; an event has layout, source, event, time, run, model, version, summary, facts: "
        "correct the file"
    ]


def test_a_template_is_the_text_of_a_file_beside_the_preset(tmp_path):
    (tmp_path / "message.json.j2").write_text('{"text": {{ summary | tojson }}}')
    preset = tmp_path / "mine.toml"
    preset.write_text(
        f'extends = "{PRESETS / "tiny.toml"}"\n[notifications.team]\nurl_from = "{WEBHOOK}"\ntemplate = "message.json.j2"\n'
    )
    assert load_config(preset).notifications["team"].template == '{"text": {{ summary | tojson }}}'


def test_what_the_page_shows_works(tmp_path):
    page = (Path(__file__).parents[2] / "docs" / "notifications.md").read_text()
    blocks = re.findall(r"```(\w+)\n(.*?)```", page, re.DOTALL)
    (template,) = [text for kind, text in blocks if kind == "jinja"]
    (tmp_path / "pager.json.j2").write_text(template)
    settings = [text for kind, text in blocks if kind == "toml" and "[notifications" in text]
    preset = tmp_path / "mine.toml"
    preset.write_text(f'extends = "{PRESETS / "tiny.toml"}"\n' + "".join(settings))
    given = load_config(preset).notifications
    assert given["team"] == NotificationConfig(url_from="NGRPO_SLACK_WEBHOOK", format="slack")
    assert json.loads(payload(given["pager"], PROMOTED)) == {
        "title": "promoted: arithmetic",
        "text": "mean@16 is better",
    }


# --- delivery -----------------------------------------------------------------------------------------------------------


def told(capfd, monkeypatch, url, **given):
    """Announce, and return what was said and how long it took."""
    monkeypatch.setenv(WEBHOOK, url)
    began = time.monotonic()
    announce({"team": settings(**given)}, PROMOTED)
    took = time.monotonic() - began
    out, err = capfd.readouterr()
    assert out == ""
    assert SECRET_PATH not in err
    assert "127.0.0.1" not in err
    return err, took


def test_a_receiver_gets_the_event_once(capfd, monkeypatch):
    with receiver() as there:
        assert told(capfd, monkeypatch, there.url)[0] == ""
    (document,) = there.documents
    assert (document["event"], document["run"]) == ("promoted", "run-1")


def test_who_did_not_ask_for_an_event_is_not_told(capfd, monkeypatch):
    with receiver() as there:
        assert told(capfd, monkeypatch, there.url, on=("failed",))[0] == ""
    assert there.bodies == []


def test_an_answer_of_500_is_tried_again_once(capfd, monkeypatch):
    with receiver("once 500") as there:
        assert told(capfd, monkeypatch, there.url)[0] == ""
    assert len(there.bodies) == 2


def test_two_answers_of_500_are_said_once(capfd, monkeypatch):
    with receiver("500") as there:
        said, _ = told(capfd, monkeypatch, there.url)
    assert said == "notification team: promoted was not delivered: the receiver answered with 500\n"
    assert len(there.bodies) == 2


@pytest.mark.parametrize("manner", ["hangs", "drips"])
def test_a_receiver_that_never_answers_costs_its_timeout_and_a_line(capfd, monkeypatch, manner):
    with receiver(manner) as there:
        said, took = told(capfd, monkeypatch, there.url, timeout=0.5)
    assert said.startswith("notification team: promoted was not delivered: ")
    assert said.count("\n") == 1
    assert took < 5, "the receiver would have held it for 30 s"


def test_an_answer_without_an_end_is_not_read(capfd, monkeypatch):
    with receiver("body") as there:
        said, took = told(capfd, monkeypatch, there.url)
    assert said == ""
    assert took < 5


def test_a_redirect_is_not_followed(capfd, monkeypatch):
    with receiver() as other, receiver("redirects", other.url) as there:
        said, _ = told(capfd, monkeypatch, there.url)
    assert "the receiver answered with 302 (redirects are not followed" in said
    assert other.bodies == []


@pytest.mark.parametrize(
    ("url", "problem"),
    [
        ("http://127.0.0.1:{closed}" + SECRET_PATH, "cannot be reached (ConnectionRefusedError)"),
        ("https://127.0.0.1:{closed}" + SECRET_PATH, "cannot be reached"),
        ("file:///etc/hostname", "is not the address of a webhook"),
        ("hooks.example" + SECRET_PATH, "is not the address of a webhook"),
        ("https://[" + SECRET_PATH, "is not the address of a webhook"),
        ("https://user:word@127.0.0.1:{closed}" + SECRET_PATH, "cannot be reached"),
        ("http://\u00fc\u0000" + SECRET_PATH, "cannot be reached"),
        ("", f"the environment variable {WEBHOOK} is not set"),
    ],
)
def test_an_address_that_leads_nowhere_is_one_line(capfd, monkeypatch, url, problem):
    with socket.socket() as nobody:
        nobody.bind(("127.0.0.1", 0))  # bound, and listened to by nobody
        if "\u0000" in url:
            url = url.replace("\u0000", "\n")  # an environment holds no NUL
        said, _ = told(capfd, monkeypatch, url.format(closed=nobody.getsockname()[1]))
    assert problem in said
    assert said.count("\n") == 1


def test_one_bad_receiver_does_not_keep_the_event_from_a_good_one(capfd, monkeypatch):
    with receiver() as good, receiver("hangs") as bad:
        monkeypatch.setenv("GOOD_WEBHOOK", good.url)
        monkeypatch.setenv("BAD_WEBHOOK", bad.url)
        names = ("BAD_WEBHOOK", "GOOD_WEBHOOK")
        announce({name.lower(): NotificationConfig(url_from=name, timeout=0.5) for name in names}, PROMOTED)
    assert len(good.bodies) == 1
    assert capfd.readouterr().err.startswith("notification bad_webhook: ")


def test_a_template_that_goes_wrong_is_one_line_and_sends_nothing(capfd, monkeypatch):
    with receiver() as there:
        said, _ = told(capfd, monkeypatch, there.url, template='{"text": {{ nothing }}}')
    assert "its template cannot be rendered (UndefinedError)" in said
    assert there.bodies == []


def test_a_variable_that_is_missing_is_said_before_the_run(monkeypatch):
    monkeypatch.delenv(WEBHOOK, raising=False)
    assert not_set({"team": settings()}) == [
        f"notification team: the environment variable {WEBHOOK} is not set: export it with the address of the webhook"
    ]


# --- decisions ----------------------------------------------------------------------------------------------------------


def promotion(decision):
    return {
        "layout": 1,
        "decision": decision,
        "reason": "because",
        "model": "m",
        "version": 3,
        "alias": "champion",
        "champion_version": 2,
        "comparison": {
            "benchmark": "arithmetic",
            "statistic": "mean",
            "gain": 1.234,
            "interval": [0.5, 2.0],
            "confidence": 0.95,
        },
    }


def test_a_decision_becomes_an_event():
    event = decided(promotion("promoted"), "run-1")
    assert (event.kind, event.run, event.model_name, event.version, event.summary) == (
        "promoted",
        "run-1",
        "m",
        3,
        "because",
    )
    assert event.facts["champion before"] == 2
    assert event.facts["gain in points"] == 1.23
    assert decided(promotion("kept"), None).facts["champion"] == 2
    assert decided(promotion("unchanged"), None) is None
