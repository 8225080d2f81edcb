"""Text from data is hostile: make it unable to change the structure of a prompt."""

import re
import unicodedata

# Angle and square brackets are how tags and chat markers are written (<rate>, <|im_start|>, [INST]); every chat
# template that we know of needs one of them. They are replaced by look-alikes that no tokenizer treats specially.
_LOOK_ALIKES = str.maketrans({"<": "‹", ">": "›", "[": "(", "]": ")", "|": "¦", "#": "♯"})
_SPACE = re.compile(r"\s+")


def neutralise(text: str | None, limit: int) -> str:
    """`text` as one line of at most `limit` characters that holds no markup, control or direction marks.

    Never raises. Compatibility forms are folded first (NFKC), so that a full-width `＜rate＞` can't become a tag
    later, by a tokenizer's normaliser.
    """
    if not text or limit <= 0:
        return ""
    # What lies far beyond the limit can't be shown: cut before the work, so that a 100 kB line costs nothing.
    text = unicodedata.normalize("NFKC", text[: 16 * limit + 256])
    # C*: control, format (zero width, direction), surrogates, private use, unassigned. White space among them is kept.
    text = "".join(" " if c.isspace() else c for c in text if c.isspace() or unicodedata.category(c)[0] != "C")
    text = _SPACE.sub(" ", text.translate(_LOOK_ALIKES)).strip()
    return text if len(text) <= limit else text[: limit - 1].rstrip() + "…"
