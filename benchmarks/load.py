"""A server under load, on this machine only: many clients at once, some that break off, and a stop in the middle.

.venv/bin/python benchmarks/load.py --clients 32 --seconds 120

Starts `reczero serve` as a process of its own. Three parts: (1) clients that ask again as soon as they are answered;
(2) the same with others that break off their connections at random moments; (3) SIGTERM while all of them wait. Every
answer is checked against what Python says of the same request. Ends with exit code 1 if anything accepted was lost, was
answered otherwise, or failed with anything but 429 (and these below 5 %).
"""

import argparse
import asyncio
import json
import os
import random
import re
import signal
import subprocess
import sys
import time
from collections import Counter

import httpx
import numpy as np
import psutil

from reczero.serving import Predictor

FILMS = [
    "Alien (1979)", "Fargo (1996)", "Speed (1994)", "Casablanca (1942)", "Toy Story (1995)", "Heat (1995)",
    "Psycho (1960)", "Babe (1995)", "Brazil (1985)", "Jaws (1975)", "Twelve Monkeys (1995)", "Clerks (1994)",
]  # fmt: skip
MOST_429 = 0.05
CLOSE = 1e-3  # of two distributions that were computed in batches of different company


def requests(count: int) -> list[dict]:
    rng = random.Random(0)
    made = []
    for _ in range(count):
        *seen, item = rng.sample(FILMS, rng.randint(1, 5))
        history = [{"title": title, "rating": rng.randint(1, 5)} for title in seen]
        made.append(
            {
                "history": history,
                "item": {"title": item, "average": round(rng.uniform(2, 5), 1), "count": rng.randint(1, 500)},
            }
        )
    return made


class Server:
    def __init__(self, model: str, queue: int, batch: int):
        command = [sys.executable, "-m", "reczero.cli.main", "serve", model, "--port", "0"]
        command += ["--queue", str(queue), "--batch-size", str(batch)]
        environment = {key: value for key, value in os.environ.items() if key != "RECZERO_API_KEY"}
        self.process = subprocess.Popen(command, stderr=subprocess.PIPE, text=True, env=environment)
        self.url = ""
        while not self.url:
            line = self.process.stderr.readline()
            if not line:
                sys.exit("the server did not start")
            if found := re.search(r"http://\S+:\d+", line):
                self.url = found[0]
        self.drain = subprocess.Popen(["cat"], stdin=self.process.stderr, stdout=subprocess.DEVNULL)
        self.watched = psutil.Process(self.process.pid)

    @property
    def memory(self) -> float:
        """MiB"""
        return self.watched.memory_info().rss / 2**20


class Load:
    def __init__(self, server: Server, asked: list[dict], want: list):
        self.server, self.asked, self.want = server, asked, want
        self.statuses: Counter = Counter()
        self.seconds: list[float] = []
        self.wrong = self.numbers_near = 0
        self.stopping = False
        self.lost: list[str] = []

    async def client(self, number: int, until: float) -> None:
        rng = random.Random(number)
        limits = httpx.Timeout(180)
        async with httpx.AsyncClient(base_url=self.server.url, timeout=limits) as session:
            while time.monotonic() < until and not self.stopping:
                place = rng.randrange(len(self.asked))
                began = time.monotonic()
                try:
                    answer = await session.post("/v1/predict", json=self.asked[place])
                except httpx.ConnectError:
                    if not self.stopping:
                        self.lost.append("could not connect")
                    return
                except httpx.HTTPError as error:
                    self.lost.append(type(error).__name__)
                    return
                self.statuses[answer.status_code] += 1
                if answer.status_code == 200:
                    self.seconds.append(time.monotonic() - began)
                    self.check(answer.json(), self.want[place])
                elif answer.status_code == 429:
                    await asyncio.sleep(float(answer.headers["retry-after"]))

    def check(self, given: dict, want) -> None:
        far = np.abs(np.subtract(given["distribution"], want.distribution)).max() > CLOSE
        if given["rating"] == want.rating and given["reasoning"] == want.reasoning and not far:
            return
        self.wrong += 1

    async def breaker(self, number: int, until: float) -> None:
        """Breaks off: while it sends, while it waits, or in the middle of a stream."""
        rng = random.Random(1000 + number)
        host, port = self.server.url.removeprefix("http://").split(":")
        while time.monotonic() < until and not self.stopping:
            body = json.dumps(rng.choice(self.asked) | {"stream": rng.random() < 0.5}).encode()
            try:
                reader, writer = await asyncio.open_connection(host, int(port))
            except OSError:
                return
            head = f"POST /v1/predict HTTP/1.1\r\nhost: {host}\r\ncontent-type: application/json\r\n"
            message = head.encode() + f"content-length: {len(body)}\r\n\r\n".encode() + body
            writer.write(message[: rng.randrange(len(message))] if rng.random() < 0.3 else message)
            await asyncio.sleep(rng.uniform(0, 3))
            writer.transport.abort()
            self.statuses["broken off"] += 1

    def show(self, title: str, took: float) -> None:
        ok = self.statuses[200]
        print(f"{title}: {ok:,} answers in {took:.0f} s ({ok / took:.2f} a second)", end="")
        if self.seconds:
            p50, p95, most = np.percentile(self.seconds, [50, 95, 100])
            print(f"; p50 {p50:.2f} s, p95 {p95:.2f} s, slowest {most:.2f} s", end="")
        print(f"; statuses {dict(self.statuses)}; otherwise than alone: {self.wrong}; lost: {self.lost or 'none'}")

    def fails(self) -> bool:
        others = [s for s in self.statuses if s not in (200, 429, "broken off")]
        asked = self.statuses[200] + self.statuses[429]
        return bool(others or self.lost or self.wrong or not asked or self.statuses[429] > MOST_429 * asked)


async def part(load: Load, clients: int, breakers: int, seconds: float, stop_after: float | None = None) -> float:
    until = time.monotonic() + seconds
    began = time.monotonic()
    tasks = [asyncio.create_task(load.client(number, until)) for number in range(clients)]
    tasks += [asyncio.create_task(load.breaker(number, until)) for number in range(breakers)]
    if stop_after is not None:
        await asyncio.sleep(stop_after)
        load.stopping = True
        load.server.process.send_signal(signal.SIGTERM)
    await asyncio.gather(*tasks)
    return time.monotonic() - began


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", default="smollm2-135m")
    parser.add_argument("--clients", type=int, default=32)
    parser.add_argument("--breakers", type=int, default=8)
    parser.add_argument("--seconds", type=float, default=120)
    parser.add_argument("--requests", type=int, default=24, help="different ones")
    parser.add_argument("--queue", type=int, default=64)
    parser.add_argument("--batch-size", type=int, default=32)
    asked = parser.parse_args()
    made = requests(asked.requests)
    predictor = Predictor.from_pretrained(asked.model)
    want = predictor.predict_many(made)
    del predictor
    server = Server(asked.model, asked.queue, asked.batch_size)
    print(f"{asked.model}, {asked.clients} clients, queue {asked.queue}, batches of {asked.batch_size}")
    failed = False
    memory = []
    plan = [
        ("asking", asked.clients, 0, asked.seconds / 2), ("asking on", asked.clients, 0, asked.seconds / 2),
        ("with breakers", asked.clients, asked.breakers, asked.seconds / 2),
    ]  # fmt: skip
    for title, clients, breakers, seconds in plan:
        load = Load(server, made, want)
        took = asyncio.run(part(load, clients, breakers, seconds))
        load.show(title, took)
        memory.append(server.memory)
        failed |= load.fails()
    print("memory after each part, MiB:", ", ".join(f"{m:.0f}" for m in memory))
    load = Load(server, made, want)
    took = asyncio.run(part(load, asked.clients, 0, 600, stop_after=5))
    load.show("with SIGTERM after 5 s", took)
    code = server.process.wait(60)
    print(f"exit code {code}")
    failed |= load.fails() or code != 0
    sys.exit(int(failed))


if __name__ == "__main__":
    main()
