"""Starts TensorBoard, and reads what its pages read."""

import io
import json
import re
import subprocess
import sys
import time
import urllib.parse
import urllib.request

import numpy as np
from PIL import Image

DEADLINE_S = 90


class Server:
    """A TensorBoard server on a free port of loopback."""

    def __init__(self, logdir, log_path, loader):
        command = [sys.executable, "-m", "tensorboard.main", "--logdir", str(logdir), "--load_fast", loader]
        command += ["--host", "127.0.0.1", "--port", "0", "--reload_interval", "1"]
        with log_path.open("w") as log:
            self.process = subprocess.Popen(command, stderr=log, stdout=log)
        self.log_path = log_path
        self.url = ""

    def start(self):
        pattern = r"http://127\.0\.0\.1:\d+"
        self.url = self.until(lambda: re.search(pattern, self.log_path.read_text()), "the address")[0]

    def until(self, condition, what):
        deadline = time.monotonic() + DEADLINE_S
        while not (result := condition()):
            assert self.process.poll() is None, self.log_path.read_text()
            assert time.monotonic() < deadline, f"waited {DEADLINE_S} s in vain for {what}"
            time.sleep(0.2)
        return result

    def get(self, path, body=None, **query):
        data = None if body is None else json.dumps(body).encode()
        url = f"{self.url}/data/plugin/{path}?{urllib.parse.urlencode(query)}"
        request = urllib.request.Request(url, data, {"Content-Type": "application/json"})
        with urllib.request.urlopen(request, timeout=30) as response:
            return response.read()

    def json(self, path, body=None, **query):
        return json.loads(self.get(path, body, **query))

    def points(self, tag):
        return [(step, value) for _, step, value in self.json("scalars/scalars", run=".", tag=tag)]

    def image(self, tag, step):
        """The only picture of this name, which must be of `step`."""
        (shown,) = self.json("images/images", run=".", tag=tag, sample=0)
        assert shown["step"] == step
        png = self.get("images/individualImage", **dict(urllib.parse.parse_qsl(shown["query"])))
        return np.asarray(Image.open(io.BytesIO(png)))

    def close(self):
        self.process.terminate()
        self.process.wait(timeout=30)
