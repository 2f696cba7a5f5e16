"""A sound environment, and one for each way to break a rule; `MODULE:NAME` names one."""

import asyncio
import os
import time
from pathlib import Path
from random import Random
from typing import Annotated

from pydantic import BaseModel

from megatron_empg.environments import (
    DemonstratedTurn,
    EnvironmentSettings,
    Opening,
    ServiceAddress,
    SideService,
    StepResult,
    Task,
    TaskSource,
    Walkthrough,
)

KINDS = ("short", "long")


def walked(*turns):
    return Walkthrough([DemonstratedTurn(action, observation) for action, observation in turns])


class SoundSettings(EnvironmentSettings):
    doors: int = 3
    """How many doors stand before the exit."""
    service_url: ServiceAddress | None = None
    """Where a service is."""


class Corridor:
    """`open` goes on, `leave` at the last door ends well; anything else is malformed."""

    def __init__(self, doors):
        self.doors, self.passed, self.done = doors, 0, False

    async def reset(self):
        return Opening()

    async def step(self, action):
        if self.done:
            raise RuntimeError("the corridor was left")
        if action == "open":
            self.passed += 1
            return StepResult(f"{self.passed} doors are behind you", False, malformed=False)
        if action != "leave":
            return StepResult("say open or leave", False, malformed=True)
        self.done = True
        return StepResult(None, True, float(self.passed == self.doors), malformed=False)

    async def close(self):
        pass


class Sound(TaskSource):
    """Doors."""

    Settings = SoundSettings
    episodes = Corridor

    def tasks(self, split):
        asked = {"role": "user", "content": "leave"}
        return [
            Task(f"{split} {i}", [asked], {"doors": i % self.settings.doors}, kind=KINDS[i % 2]) for i in range(20)
        ]

    def make(self, task):
        return self.episodes(task.payload["doors"])

    def walkthrough(self, task, seed):
        doors = task.payload["doors"]
        opened = [("open", f"{door + 1} doors are behind you") for door in range(doors)]
        return walked(*opened, ("leave", None))

    def rehearse(self, task):
        return ["open", "leave"]


class InProcesses(Sound):
    isolation = "process"
    worker_memory_gib = 0.5


# Plug-ins


class Undocumented(Sound):
    class Settings(EnvironmentSettings):
        doors: int = 3


class NestedUndocumented(Sound):
    class Settings(EnvironmentSettings):
        class Inner(BaseModel):
            width: int = 1

        doors: int = 3
        """Doors."""
        inner: Inner = Inner()
        """What is within."""


class NoSettings(Sound):
    class Settings(BaseModel):
        doors: int = 3


class Elsewhere(Sound):
    isolation = "thread"


class Weightless(Sound):
    worker_memory_gib = 0.0


class Serving(Sound):
    service = SideService("doors", "service_url", ("-m", "doors"), "DOORS_TOKEN")

    @classmethod
    def services(cls, settings):
        return (cls.service,)


class ServingInOneText(Serving):
    service = SideService("doors", "service_url", "-m doors", "DOORS_TOKEN")


class ServingNobody(Serving):
    service = SideService("doors", "doors", ("-m", "doors"), "DOORS_TOKEN")


class ServingSecretly(Serving):
    service = SideService("doors", "service_url", ("-m", "doors"), "doors token")


class Usurping(Sound):
    def metrics(self):
        return {"train/success": 1.0}


# Tasks


class Changed(Sound):
    """Its tasks, each `changed`."""

    def changed(self, number, task):
        return task

    def tasks(self, split):
        return [self.changed(number, task) for number, task in enumerate(super().tasks(split))]


class Unlisted(Sound):
    def tasks(self, split):
        raise ValueError("line 3 is cut")


class Untrained(Sound):
    def tasks(self, split):
        return [] if split == "train" else super().tasks(split)


class Untested(Sound):
    def tasks(self, split):
        return super().tasks(split) if split == "train" else []


class Twins(Changed):
    def changed(self, number, task):
        return Task("twin", task.prompt, task.payload)


class Leaking(Changed):
    def changed(self, number, task):
        return Task(str(number), task.prompt, task.payload)


class Unwritable(Changed):
    def changed(self, number, task):
        return Task(task.id, task.prompt, {"doors": 1, "seen": {1, 2}})


class Altered(Changed):
    def changed(self, number, task):
        return Task(task.id, task.prompt, {1: "one", "doors": 1})


class Roles(Changed):
    def changed(self, number, task):
        return Task(task.id, [{"role": "teacher", "content": "go"}], task.payload)


class Hopping(Changed):
    def changed(self, number, task):
        return Task(task.id, task.prompt, task.payload, hops=True)


class Silent(Changed):
    def changed(self, number, task):
        return Task(task.id, [], task.payload)


class LateSystem(Changed):
    def changed(self, number, task):
        return Task(task.id, [*task.prompt, {"role": "system", "content": "be good"}], task.payload)


class Shuffling(Sound):
    def sample(self, split, count, seed):
        return Random().sample(self.tasks(split), count)


class Seedless(Sound):
    def sample(self, split, count, seed):
        return self.tasks(split)[:count]


class Counting(Sound):
    """Its fixed set depends on how often it was asked."""

    asked = 0

    def fixed(self, split, count):
        self.asked += 1
        super().fixed(split, count)
        return self.tasks(split)[self.asked % 3 :][:count]


class Resizing(Sound):
    def fixed(self, split, count):
        super().fixed(split, count)
        return Random(count).sample(self.tasks(split), count)


class Boundless(Sound):
    def fixed(self, split, count):
        return super().fixed(split, min(count, len(self.tasks(split))))


class Keyed(Sound):
    """Its tasks say whether its setting can be read among the words of its process."""

    class Settings(SoundSettings):
        key: str = ""
        """What nobody may see."""

    def tasks(self, split):
        shown = self.settings.key in Path("/proc/self/cmdline").read_text(encoding="utf-8")
        tasks = super().tasks(split)
        return [Task(f"{task.id} {shown}", task.prompt, task.payload, kind=task.kind) for task in tasks]


class Hashed(Sound):
    def sample(self, split, count, seed):
        return sorted(self.tasks(split), key=lambda task: hash((task.id, seed)))[:count]


# Episodes


class Synchronous(Sound):
    class episodes(Corridor):
        def step(self, action):
            return StepResult(None, True)


class Shared(Sound):
    def make(self, task):
        self.only = getattr(self, "only", None) or super().make(task)
        return self.only


class Heavy(Sound):
    def make(self, task):
        until = time.thread_time() + 0.08
        while time.thread_time() < until:
            pass
        return super().make(task)


class NoOpening(Sound):
    class episodes(Corridor):
        async def reset(self):
            return None


class Monologue(Sound):
    class episodes(Corridor):
        async def reset(self):
            return Opening([{"role": "user", "content": "a door"}])


class Prefilled(Sound):
    class episodes(Corridor):
        async def reset(self):
            return Opening([{"role": "assistant", "content": "I will"}])


class Tuple(Sound):
    class episodes(Corridor):
        async def step(self, action):
            return None, 0.0, True, {}


class Garrulous(Sound):
    class episodes(Corridor):
        async def step(self, action):
            return StepResult("well done", True, 1.0)


class Speechless(Sound):
    class episodes(Corridor):
        async def step(self, action):
            return StepResult(None, False)


class Priceless(Sound):
    class episodes(Corridor):
        async def step(self, action):
            return StepResult("on", False, float("nan"))


class Chatty(Sound):
    class episodes(Corridor):
        async def step(self, action):
            return StepResult("on", False, info={"all": [1, 2]})


class Endless(Sound):
    class episodes(Corridor):
        async def step(self, action):
            self.done = False
            return await super().step(action)


class Fragile(Sound):
    class episodes(Corridor):
        async def step(self, action):
            action.encode()
            return await super().step(action)


class Generous(Sound):
    class episodes(Corridor):
        async def step(self, action):
            result = await super().step(action)
            return StepResult(result.observation, result.done, float(len(action) > 50_000))


class ClosedOnce(Sound):
    class episodes(Corridor):
        async def close(self):
            del self.doors


class Dicing(Sound):
    class episodes(Corridor):
        async def step(self, action):
            result = await super().step(action)
            seen = None if result.observation is None else f"{result.observation} {os.urandom(4).hex()}"
            return StepResult(seen, result.done, result.reward)


class DicingOpenly(Dicing):
    deterministic = False

    walkthrough = None


class Entangled(Sound):
    """All episodes walk the same corridor: the doors that one opens are open for the next to begin."""

    class episodes(Corridor):
        alive = 0

        async def reset(self):
            type(self).alive += 1
            return Opening()

        async def step(self, action):
            result = await super().step(action)
            if result.observation is None:
                return result
            return StepResult(f"{result.observation} {type(self).alive}", False)

        async def close(self):
            self.close = Corridor.close.__get__(self)
            type(self).alive -= 1

    def walkthrough(self, task, seed):
        turns = super().walkthrough(task, seed).turns
        return walked(*((action, seen and f"{seen} 1") for action, seen, _ in turns))


class Locking(Sound):
    """A step that is cancelled keeps the lock."""

    lock = False

    def make(self, task):
        source = self

        class Locked(Corridor):
            async def step(self, action):
                while source.lock:
                    await asyncio.sleep(0.01)
                source.lock = True
                await asyncio.sleep(0.01)
                source.lock = False
                return await super().step(action)

        return Locked(task.payload["doors"])


class Stubborn(Sound):
    class episodes(Corridor):
        async def step(self, action):
            try:
                await asyncio.sleep(0.001)
            except asyncio.CancelledError:
                await asyncio.sleep(60)
            return await super().step(action)


class WrongGold(Changed):
    def changed(self, number, task):
        return Task(task.id, task.prompt, task.payload, gold="exit")


class WorthlessGold(Changed):
    def changed(self, number, task):
        return Task(task.id, task.prompt, {"doors": 2}, gold="leave")


class Boasting(Sound):
    def walkthrough(self, task, seed):
        return walked(("open", "the exit"), ("leave", None))


class Rambling(Sound):
    def walkthrough(self, task, seed):
        return walked(*(("open", f"{door + 1} doors are behind you") for door in range(99)))


class Mumbling(Sound):
    def walkthrough(self, task, seed):
        return walked(("hm", "say open or leave"), ("leave", None))


class Unrehearsed(Sound):
    def rehearse(self, task):
        return ["mumble"]


class Computing(Sound):
    class episodes(Corridor):
        seconds = 0.08

        async def step(self, action):
            until = time.thread_time() + self.seconds
            type(self).seconds = 0.0  # once is enough
            while time.thread_time() < until:
                pass
            return await super().step(action)


class Sleeping(Sound):
    class episodes(Corridor):
        seconds = 0.6

        async def step(self, action):
            time.sleep(self.seconds)
            type(self).seconds = 0.0
            return await super().step(action)


class Hanging(Sound):
    class episodes(Corridor):
        async def step(self, action):
            await asyncio.sleep(60)


class Refused(Sound):
    class Settings(EnvironmentSettings):
        doors: Annotated[int, "needed"]
        """Doors."""


# Whatever would end more than its episode


class Unclosable(Sound):
    async def close(self):
        raise ValueError("the door is stuck")


class Gigantic(InProcesses):
    worker_memory_gib = 1e6


class Negative(InProcesses):
    worker_memory_gib = -1


class Unmade(Sound):
    def __init__(self, settings, limits):
        raise KeyError("key")


class UnmadeByExit(Sound):
    def __init__(self, settings, limits):
        raise SystemExit(3)


class Exiting(Sound):
    class episodes(Corridor):
        async def step(self, action):
            raise SystemExit(0)


class Cancelling(Sound):
    class episodes(Corridor):
        async def step(self, action):
            asyncio.current_task().cancel()
            await asyncio.sleep(0)


class Baseless(Sound):
    class episodes(Corridor):
        async def reset(self):
            raise BaseException("base")


class Clinging(Sound):
    class episodes(Corridor):
        async def close(self):
            while True:
                try:
                    await asyncio.sleep(60)
                except asyncio.CancelledError:
                    continue
