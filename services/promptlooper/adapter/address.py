"""Addresses of providers as operators write them."""

from __future__ import annotations

from urllib.parse import urlsplit


def checked_base_url(text: str) -> str:
    """Without a slash at its end. Raises ValueError where requests can't be sent there or a secret stands in it."""
    try:
        parts = urlsplit(text)
        port = parts.port
    except ValueError as error:
        raise ValueError(f"this is not an address ({error})") from None
    if parts.username is not None or parts.password is not None:
        raise ValueError("an address holds no user or password; give the key by 'api_key_env' or 'api_key_file'")
    if parts.scheme not in ("http", "https") or not parts.hostname or port == 0:
        raise ValueError(f"{text!r} is not an address; write it as 'https://host/v1'")
    if parts.query or parts.fragment:
        raise ValueError("an address holds no '?' or '#'; '/chat/completions' is put behind it")
    return text.rstrip("/")


def ollama_base_url(host: str) -> str:
    """The base URL of `OLLAMA_HOST` as Ollama's own client reads it: scheme and port may be absent, 0.0.0.0 is here."""
    host = host.strip() or "127.0.0.1:11434"
    scheme, separator, rest = host.partition("://")
    default_port: int | None = None
    if not separator:
        scheme, rest, default_port = "http", host, 11434
    parts = urlsplit(f"{scheme}://{rest}")
    name = parts.hostname or "127.0.0.1"
    if name in ("0.0.0.0", "::"):
        name = "127.0.0.1"
    if ":" in name:
        name = f"[{name}]"
    if parts.username is not None:
        raise ValueError("an address holds no user or password")
    port = parts.port or default_port
    return native_ollama_url(f"{scheme}://{name}{f':{port}' if port else ''}{parts.path}")


def native_ollama_url(text: str) -> str:
    """Without the `/v1` of its OpenAI-compatible address."""
    return checked_base_url(text.rstrip("/")).removesuffix("/v1")


def azure_base_url(text: str) -> str:
    """The resource's own address, whatever of the API's path is written behind it."""
    url = checked_base_url(text)
    for end in ("/v1", "/openai"):
        url = url.removesuffix(end)
    return url
