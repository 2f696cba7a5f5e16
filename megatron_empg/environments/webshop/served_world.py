"""A visit to a WebShop site that runs somewhere (web_agent_site/app.py), as a world of text commands."""

from __future__ import annotations

import secrets
from math import nan
from urllib.parse import urlsplit

from megatron_empg.environments.text_worlds.world import Scene
from megatron_empg.environments.webshop.commands import ShopCommand, read_command
from megatron_empg.environments.webshop.errors import ShopServerError
from megatron_empg.environments.webshop.pages import SEARCH
from megatron_empg.environments.webshop.served_client import ShopClient
from megatron_empg.environments.webshop.served_pages import Link, ServedPage, read_page
from megatron_empg.environments.webshop.world import Rewards

LONGEST_QUERY = 500
"""Characters of a search that are sent: it becomes a part of an address, which servers bound."""
_NOT_SENT = str.maketrans(dict.fromkeys("/<>\\%?#", " "))
"""What would lead to another address or, as "<r>", make the site do something else than search."""


class ServedWorld:
    """A `World`. A site that fails is an error of the episode, never a reward of nothing."""

    def __init__(self, url: str, goal: int, rewards: Rewards, *, within: float | None, measured_as: str) -> None:
        """`goal`: its number on the site; `within`: seconds that a page may take."""
        self._client = ShopClient(url, within)
        self._goal = goal
        self._rewards = rewards
        self._measured_as = measured_as
        self._session = ""
        self._page = ServedPage()
        self._address = ""

    def begin(self) -> Scene:
        """The search page of a session that has the goal of that number. Raises ShopServerError."""
        # The site takes the goal from a session's name which has "fixed" in it; the rest makes the session new.
        self._session = f"empg{secrets.token_hex(8)}_fixed_{self._goal}"
        self._take(self._client.get(self._session))
        if self._page.search_form is None:
            raise ShopServerError(
                f"the WebShop server at {self._client.url} shows no search bar on a session's first page; is this "
                "the address of a WebShop site?"
            )
        return self._scene()

    def act(self, command: str) -> Scene:
        """The page that a command leads to. Raises ShopServerError."""
        read = read_command(command)
        if read.name == "search" and read.argument is not None:
            self._search(read)
        elif read.name == "click" and read.argument is not None:
            self._click(read.argument)
        return self._scene()

    def close(self) -> None:
        """Close the connections."""
        self._client.close()

    def _search(self, command: ShopCommand) -> None:
        """From any page, as in WebShop's text mode: the session's own address takes searches."""
        query = _sendable(command.argument or "")
        if query:
            self._take(self._client.send(self._session, {"search_query": query}))

    def _click(self, wanted: str) -> None:
        words = wanted.split()
        for name, link in self._page.links.items():
            if name != SEARCH.lower() and name.split() == words:
                self._take(self._client.follow(_usable(link)))
                return

    def _take(self, answered: tuple[str, str]) -> None:
        """Show the page. Raises ShopServerError for one that is not WebShop's: those lead on or have a score."""
        html, self._address = answered
        self._page = read_page(html)
        if self._page.score is None and self._page.search_form is None and not self._page.links:
            raise ShopServerError(
                f"the WebShop server at {self._client.url} answered with a page that is none of WebShop's: it has "
                f"no search bar, no button, no link and no score; it begins {html[:40]!a}"
            )

    def _scene(self) -> Scene:
        page = self._page
        state = urlsplit(self._address).path.replace(self._session, "")
        if page.score is not None:
            return self._bought(page.score, state)
        clicks = [f"click[{name}]" for name in page.links if name != SEARCH.lower()]
        if page.search_form is not None:
            search = ["search[<your query>]"]
        else:
            search = []
        return Scene(page.text, (*search, *clicks), anchor=state, info={"measured_as": self._measured_as})

    def _bought(self, told: str, state: str) -> Scene:
        score = self._score(told)
        return Scene(
            self._page.text,
            done=True,
            reward=self._rewards.of(score),
            success=score == 1.0,
            anchor=state,
            info={"score": score, "measured_as": self._measured_as},
        )

    def _score(self, told: str) -> float:
        try:
            score = float(told)
        except ValueError:
            score = nan
        if not 0.0 <= score <= 1.0:  # as it is for nan
            raise ShopServerError(
                f"the WebShop server at {self._client.url} shows the score {told[:40]!a}; it must be a number "
                "from 0 to 1"
            )
        return score


def _sendable(query: str) -> str:
    plain = query.encode("utf-8", "replace").decode("utf-8").translate(_NOT_SENT)
    return " ".join(plain[:LONGEST_QUERY].split())


def _usable(link: Link) -> Link:
    if not link.address:
        raise ShopServerError(
            "a page of the WebShop server has a button that leads nowhere; its pages are not WebShop's"
        )
    return link
