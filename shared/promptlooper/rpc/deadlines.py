"""How long each RPC usually takes at most: filled in by clients and servers where a caller sends no deadline."""

from __future__ import annotations

_RUNNER = "/promptlooper.v1.RunnerService/"
_ADAPTER = "/promptlooper.v1.AdapterService/"
_CACHE = "/promptlooper.v1.CacheService/"
_SCORER = "/promptlooper.v1.ScorerService/"

# Seconds, as the comments in protos/ say; None is no deadline.
USUAL: dict[str, float | None] = {
    _RUNNER + "CreateExperiment": 30,
    _RUNNER + "UploadFile": 30,
    _RUNNER + "RenderRun": 30,
    _RUNNER + "ValidateExperiment": 30,
    _RUNNER + "GetExperiment": 10,
    _RUNNER + "ListExperiments": 10,
    _RUNNER + "CancelExperiment": 30,
    _RUNNER + "PauseExperiment": 10,
    _RUNNER + "ResumeExperiment": 30,
    _RUNNER + "RetryExperiment": 30,
    _RUNNER + "UpdateExperiment": 10,
    _RUNNER + "DeleteExperiment": 60,
    _RUNNER + "WatchExperiment": None,
    _RUNNER + "ListEvents": 10,
    _RUNNER + "GetRun": 10,
    _RUNNER + "ListRuns": 10,
    _RUNNER + "CancelRun": 10,
    _RUNNER + "StartRun": 30,
    _RUNNER + "WatchRun": None,
    _RUNNER + "ExecuteRun": 300,
    _RUNNER + "ExportRuns": 600,
    _RUNNER + "SummarizeExperiment": 30,
    _RUNNER + "ListModels": 10,
    _RUNNER + "ListScorers": 10,
    _RUNNER + "GetCacheStats": 10,
    _RUNNER + "PurgeCache": 60,
    _ADAPTER + "Complete": 60,
    _ADAPTER + "CompleteMany": None,
    _ADAPTER + "StreamComplete": 60,
    _ADAPTER + "Embed": 60,
    _ADAPTER + "SubmitBatch": 300,
    _ADAPTER + "GetBatch": 300,
    _ADAPTER + "CancelBatch": 30,
    _ADAPTER + "CheckModels": 10,
    _ADAPTER + "ListModels": 10,
    _CACHE + "Lookup": 1,
    _CACHE + "Renew": 1,
    _CACHE + "Store": 1,
    _CACHE + "Release": 1,
    _CACHE + "Purge": 60,
    _CACHE + "GetStats": 10,
    _SCORER + "Score": 30,
    _SCORER + "CheckScorers": 10,
    _SCORER + "ListScorers": 10,
}

# Some clients send a deadline of decades for "none".
LONGEST = 365 * 24 * 3600.0


def usual_deadline(method: str, *, otherwise: float | None) -> float | None:
    """Seconds for a method (`/package.Service/Method`), `otherwise` where it is not one of ours; None is none."""
    return USUAL.get(method, otherwise)


def is_deadline(seconds: float | None) -> bool:
    """Whether what a server reads as the time remaining is a deadline that somebody meant."""
    return seconds is not None and seconds < LONGEST
