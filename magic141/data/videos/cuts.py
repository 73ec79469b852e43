"""Cuts: where a video goes on with another scene, as FFmpeg's filter `scdet` sees it."""

from __future__ import annotations

from av.filter import Graph
from av.video.frame import VideoFrame

_SCORE = "lavfi.scd.score"
_SIDE = 128  # of the pictures that are compared: enough to tell scenes apart, and little work


class CutDetector:
    """Says of frames, one after the other, which of them begin a new scene.

    A frame's score is the mean absolute difference of its brightness from that of the frame before, in percent, or what
    this difference has over the one before, if that is less: neither steady motion nor what follows a cut scores high.
    """

    def __init__(self, least_score: float) -> None:
        self._least_score = least_score
        self._graph: Graph | None = None
        self._kind: tuple[object, ...] = ()

    def is_cut(self, frame: VideoFrame) -> bool:
        """Whether a frame begins a new scene; the first one does not."""
        kind = (frame.width, frame.height, frame.format.name)
        if self._graph is None or self._kind != kind:  # a stream may change them
            self._graph, self._kind = _graph(frame), kind
        self._graph.vpush(frame)
        return float(self._graph.vpull().metadata.get(_SCORE, 0.0)) >= self._least_score


def _graph(frame: VideoFrame) -> Graph:
    graph = Graph()
    graph.threads = 1
    nodes = [
        graph.add_buffer(width=frame.width, height=frame.height, format=frame.format, time_base=frame.time_base),
        graph.add("scale", f"{_SIDE}:{_SIDE}:flags=area"),
        graph.add("format", "gray"),
        graph.add("scdet"),
        graph.add("buffersink"),
    ]
    graph.link_nodes(*nodes)
    graph.configure()
    return graph
