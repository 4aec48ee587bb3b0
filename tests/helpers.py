"What several test files share."

import os

import pytest

from bertlab.core.files import BertlabError


def assert_error(function, *parts):
    "The message of the BertlabError that `function` raises; it is one line and holds all `parts`."
    with pytest.raises(BertlabError) as caught:
        function()
    return assert_one_line(caught, *parts)


def assert_one_line(caught, *parts):
    "The message of what `pytest.raises` has caught; it is one line and holds all `parts`."
    message = str(caught.value)
    assert "\n" not in message and all(str(part) in message for part in parts), message
    return message


def contents(folder):
    "All that is below a folder: names, and the bytes of files."
    paths = sorted(folder.rglob("*"))
    return {str(p.relative_to(folder)): p.read_bytes() if p.is_file() else None for p in paths}


def toy_lines():
    "240 sentences with something to learn: which words follow each other."
    things, states = "array figure index thread tensor".split(), "sorted drawn empty locked copied".split()
    return [f"the {thing} number {i} is {state}" for i in range(16) for thing in things for state in states]


class Bomb:
    "A pickle that leaves a mark when it is loaded."

    def __init__(self, mark):
        self.mark = mark

    def __reduce__(self):
        return os.mkdir, (str(self.mark),)
