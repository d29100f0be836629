"""Names of what is stored, made of what it depends on."""

import json
from hashlib import sha256


def digest(value: object, length: int = 12) -> str:
    """The first `length` hex digits of the SHA-256 of `value`: of bytes as they are, of anything else as JSON, whose
    dictionaries keep their order."""
    data = value if isinstance(value, bytes) else json.dumps(value).encode()
    return sha256(data).hexdigest()[:length]
