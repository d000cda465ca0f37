"""The Python client: runs experiments on a Runner, or in this process.

>>> from promptlooper.client import run
>>> result = run("capitals.yaml")
>>> for variant in result.summary.variants:
...     print(variant.label, variant.score)
default · mock/echo 1.0
"""

from promptlooper.client.async_client import AsyncClient
from promptlooper.client.results import AsyncResult, Result
from promptlooper.client.sync_client import Client, run
from promptlooper.clients.packages import MissingPackage

__all__ = ["AsyncClient", "AsyncResult", "Client", "MissingPackage", "Result", "run"]
