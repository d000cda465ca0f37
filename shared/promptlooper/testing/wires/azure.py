"""Azure OpenAI: as OpenAI, at the paths of deployments or of the v1 API, with the key in `api-key`."""

from __future__ import annotations

import re
from dataclasses import replace

from promptlooper.testing.wires.openai_chat import OpenAIChatWire
from promptlooper.testing.wires.wire import Asked, Refused, needed


class AzureWire(OpenAIChatWire):
    type = "azure"
    base = ""
    paths = tuple(
        place + operation
        for place in ("/openai/deployments/{name}", "/openai/v1")
        for operation in OpenAIChatWire.paths
    )

    def check(self, asked: Asked) -> None:
        key = needed(asked, "api-key")
        version = re.search(r"\?api-version=(\d{4}-\d\d-\d\d(?:-preview)?)$", asked.path)
        if ("/deployments/" in asked.path) != bool(version):
            raise Refused(404, "Resource not found")
        super().check(replace(asked, headers={**asked.headers, "authorization": f"Bearer {key}"}))
