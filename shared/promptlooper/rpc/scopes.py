"""The one table of what each RPC asks of its caller. What is not in it is refused."""

from __future__ import annotations

from enum import StrEnum

_RUNNER = "/promptlooper.v1.RunnerService/"
_ADAPTER = "/promptlooper.v1.AdapterService/"
_CACHE = "/promptlooper.v1.CacheService/"
_SCORER = "/promptlooper.v1.ScorerService/"
_HEALTH = "/grpc.health.v1.Health/"


class Scope(StrEnum):
    """What a caller may do; each includes those before it."""

    READ = "read"
    RUN = "run"
    ADMIN = "admin"

    def includes(self, other: Scope) -> bool:
        return _ORDER.index(self) >= _ORDER.index(other)


_ORDER = (Scope.READ, Scope.RUN, Scope.ADMIN)

# The exact path, as it is on the wire. None needs no token.
SCOPES: dict[str, Scope | None] = {
    _RUNNER + "CreateExperiment": Scope.RUN,
    _RUNNER + "UploadFile": Scope.RUN,
    _RUNNER + "RenderRun": Scope.READ,
    _RUNNER + "ValidateExperiment": Scope.READ,
    _RUNNER + "GetExperiment": Scope.READ,
    _RUNNER + "ListExperiments": Scope.READ,
    _RUNNER + "CancelExperiment": Scope.RUN,
    _RUNNER + "PauseExperiment": Scope.RUN,
    _RUNNER + "ResumeExperiment": Scope.RUN,
    _RUNNER + "RetryExperiment": Scope.RUN,
    _RUNNER + "UpdateExperiment": Scope.RUN,
    _RUNNER + "DeleteExperiment": Scope.ADMIN,
    _RUNNER + "WatchExperiment": Scope.READ,
    _RUNNER + "ListEvents": Scope.READ,
    _RUNNER + "GetRun": Scope.READ,
    _RUNNER + "ListRuns": Scope.READ,
    _RUNNER + "CancelRun": Scope.RUN,
    _RUNNER + "StartRun": Scope.RUN,
    _RUNNER + "WatchRun": Scope.READ,
    _RUNNER + "ExecuteRun": Scope.RUN,
    _RUNNER + "ExportRuns": Scope.READ,
    _RUNNER + "SummarizeExperiment": Scope.READ,
    _RUNNER + "ListModels": Scope.READ,
    _RUNNER + "ListScorers": Scope.READ,
    _RUNNER + "GetCacheStats": Scope.READ,
    _RUNNER + "PurgeCache": Scope.ADMIN,
    _ADAPTER + "Complete": Scope.RUN,
    _ADAPTER + "CompleteMany": Scope.RUN,
    _ADAPTER + "StreamComplete": Scope.RUN,
    _ADAPTER + "Embed": Scope.RUN,
    _ADAPTER + "SubmitBatch": Scope.RUN,
    _ADAPTER + "GetBatch": Scope.RUN,  # answers are in it
    _ADAPTER + "CancelBatch": Scope.RUN,
    _ADAPTER + "CheckModels": Scope.READ,
    _ADAPTER + "ListModels": Scope.READ,
    _CACHE + "Lookup": Scope.RUN,  # it takes leases
    _CACHE + "Renew": Scope.RUN,
    _CACHE + "Store": Scope.RUN,
    _CACHE + "Release": Scope.RUN,
    _CACHE + "Purge": Scope.ADMIN,
    _CACHE + "GetStats": Scope.READ,
    _SCORER + "Score": Scope.RUN,
    _SCORER + "CheckScorers": Scope.READ,
    _SCORER + "ListScorers": Scope.READ,
    _HEALTH + "Check": None,
    _HEALTH + "Watch": None,
    _HEALTH + "List": None,
    "/grpc.reflection.v1alpha.ServerReflection/ServerReflectionInfo": Scope.READ,
}
