"""A server of the smallest kind: ``python app.py PORT [wrong|refusing]`` answers from model.onnx.

``wrong`` moves one number of one question's answer by a thousandth, ``refusing`` refuses every tenth.
"""

from __future__ import annotations

import itertools
import json
import subprocess
import sys
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

import numpy as np
import onnxruntime as ort
from scipy.special import softmax

PORT, MANNER = int(sys.argv[1]), (sys.argv[2:] or ["right"])[0]
SESSION = ort.InferenceSession("model.onnx", providers=["CPUExecutionProvider"])
COUNT = itertools.count(1)
MARKED: list[list[float]] = []  # the first question that came


class Handler(BaseHTTPRequestHandler):
    """POST a row, get its probabilities."""

    protocol_version = "HTTP/1.1"

    def do_POST(self) -> None:
        document = json.loads(self.rfile.read(int(self.headers["content-length"])))
        if not MARKED:
            MARKED.append(document["row"])
        if MANNER == "refusing" and next(COUNT) % 10 == 0:
            self._send(503, {"error": "busy"})
            return
        (logits,) = SESSION.run(None, {"input": np.array([document["row"]], np.float32)})
        answer = softmax(logits[0]).tolist()
        if MANNER == "wrong" and document["row"] == MARKED[0]:
            answer[3] += 0.001
        self._send(200, {"probabilities": answer})

    def _send(self, status: int, document: dict[str, Any]) -> None:
        body = json.dumps(document).encode()
        head = f"HTTP/1.1 {status} X\r\nContent-Type: application/json\r\nContent-Length: {len(body)}\r\n\r\n"
        self.wfile.write(head.encode() + body)

    def log_message(self, *_: Any) -> None:
        """Nothing."""


# A process that a server leaves behind when it is told to end, as some do.
subprocess.Popen([sys.executable, "-c", "import time; time.sleep(600)"])
ThreadingHTTPServer(("127.0.0.1", PORT), Handler).serve_forever()
