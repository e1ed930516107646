"""docs/troubleshooting.md has an entry for every message that a user may meet, and quotes only messages that exist."""

import re
from functools import cache

from source_messages import HOLE, ROOT, Message, messages, strings

from gnp_scale.exit_codes import Exit

PAGE = (ROOT / "docs" / "troubleshooting.md").read_text()
SECTIONS = dict(re.findall(r"^## (.+?)\n(.*?)(?=^## |\Z)", PAGE, flags=re.MULTILINE | re.DOTALL))
FORMS = ("...: ...", "... Got ...")
"""Entries for all refusals of options and arguments, and of calls of the method, that have none of their own."""
FOREIGN = "Messages of other programs"
OWN_ROOMS = ("run", "resilience", "checkpoint", "data", "loop.py", "steps.py", "mesh.py", "launch", "requirements")
"""The causes of their messages are outside of the command: machines, networks, disks, data, other processes."""
REFUSALS = ("check", "ConfigError", "problem")
OPTION = re.compile(r"--|(data|model|gnp|optim|mesh|train|divergence|checkpoint)\.")


@cache
def quotes(section: str) -> list[str]:
    """The messages in the first column of a section's table."""
    cells = re.findall(r"^\| (.+?) \| .+ \| .+ \|$", SECTIONS[section], flags=re.MULTILINE)
    return [quote for cell in cells for quote in re.findall(r"`([^`]+)`", cell)]


OWN = [quote for section in SECTIONS if section != FOREIGN for quote in quotes(section) if quote not in FORMS]


def matches(quote: str, text: str) -> bool:
    """Whether a message has the words of a quote in this order; `...` stands for anything."""
    end = 0
    for part in quote.split("..."):
        start = text.find(part.strip(), end)
        if start < 0:
            return False
        end = start + len(part.strip())
    return True


def needs_entry(message: Message) -> bool:
    """Whether a message is shown as it is, not as a part of another one.

    Parts are the `ValueError`s of other rooms, and most of what a function returns as a problem.
    """
    if message.shown_by == "ValueError":
        return message.room in ("gnp", "gnp_kernels")
    return message.shown_by != "problem" or message.room in OWN_ROOMS


def has_entry(message: Message) -> bool:
    """Whether a message has an entry of its own or, if it refuses options or arguments, one of the forms."""
    if any(matches(quote, message.text) for quote in OWN):
        return True
    if message.room in ("gnp", "gnp_kernels"):
        return " Got " in message.text
    if message.shown_by == "ArgumentTypeError":
        return True  # argparse says before it which argument it is about.
    is_refusal = message.shown_by in REFUSALS and ": " in message.text
    return is_refusal and (message.room not in OWN_ROOMS or OPTION.match(message.text) is not None)


def test_every_message_has_an_entry():
    shown = [message for message in messages() if needs_entry(message)]
    assert len(shown) > 300
    missing = [f"{message.place}: {message.text}" for message in shown if not has_entry(message)]
    assert not missing, "add to docs/troubleshooting.md:\n" + "\n".join(missing).replace(HOLE, "...")


def test_every_entry_quotes_the_source():
    """A message that was changed or removed leaves no entry behind, and no entry fits everything."""
    texts = [*strings(), *(message.text for message in messages())]
    assert [quote for quote in OWN if not any(matches(quote, text) for text in texts)] == []
    assert [quote for quote in OWN if sum(map(str.isalpha, quote)) < 7] == []


def test_every_exit_code_has_an_entry():
    codes = {int(code) for code in re.findall(r"^\| (\d+) \|", SECTIONS["Exit codes"], flags=re.MULTILINE)}
    assert {int(code) for code in Exit} <= codes
