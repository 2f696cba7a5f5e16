"""Episodes against a WebShop site over HTTP: a small real server that serves pages as the published site does
(its addresses, forms, classes and ids), over the same catalogue as the engine beside which it is played."""

import ast
import threading
import time
from html import escape
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from urllib.parse import parse_qs, quote, unquote

import pytest

from megatron_empg.environments.conformance.run import check_environment
from megatron_empg.environments.registry import make_task_source
from megatron_empg.environments.text_worlds.turns import write_turn
from megatron_empg.environments.webshop.errors import ShopServerError
from megatron_empg.environments.webshop.goals import price_of
from megatron_empg.environments.webshop.pages import RESULTS_PER_PAGE, SEPARATOR
from megatron_empg.environments.webshop.reward import score_of
from megatron_empg.environments.webshop.titles import WordTitles
from tests.support.acting import begun, step

LOCAL = {"generated_products": 200, "test_goals": 20, "dev_goals": 0, "held_out": [], "shopper": "flawless"}
FRAME = """<!DOCTYPE html>
<html>
  <head><title>unseen</title></head>
  <body>
    <!-- unseen -->
    {body}
  </body>
  <script>
    var unseen = `{{}}`;
  </script>
</html>"""


class Site:
    """What the published site keeps: goals by session, and all else in addresses."""

    def __init__(self, catalogue):
        self.catalogue = catalogue
        self.fault = ""
        self.asked = []

    def goal(self, session):
        return self.catalogue.goals[int(session.split("_")[-1])]

    def page(self, parts):
        kind, *rest = parts
        pages = {
            "search_results": self.results,
            "item_page": self.item,
            "item_sub_page": self.sub_page,
            "done": self.done,
        }
        return pages[kind](*rest) if kind in pages else self.search(kind)

    def search(self, session):
        form = (
            f'<form role="form" method="post" action="/{session}"><div>\n'
            '<input id="search_input" type="text" name="search_query" required/>\n'
            '<button class="btn btn-success" type="submit"><i></i>Search</button>\n</div></form>'
        )
        return f"<div><h2>WebShop</h2>\n{self.instruction(session)}\n{form}</div>"

    def results(self, session, keywords, page):
        words, number = " ".join(ast.literal_eval(keywords)), int(page)
        found = self.catalogue.search.best(words)
        shown = found[(number - 1) * RESULTS_PER_PAGE : number * RESULTS_PER_PAGE]
        here = f"/search_results/{session}/{quote(keywords, safe='')}"
        turns = [("< Prev", number - 1)] if number > 1 else []
        buttons = [button(name, f"{here}/{to}") for name, to in [*turns, ("Next >", number + 1)]]
        items = [self.listed(session, self.catalogue.store.product(one), keywords, page) for one in shown]
        return "\n".join(
            [
                self.instruction(session),
                button("Back to Search", f"/{session}"),
                f"<h3>Page {number} (Total results: {len(found)})</h3>",
                *buttons,
                *items,
            ]
        )

    def listed(self, session, product, keywords, page):
        where = f"/item_page/{session}/{product.asin}/{quote(keywords, safe='')}/{page}/{quote('{}', safe='')}"
        return (
            f'<h4><a class="product-link" href="{escape(where)}">{product.asin}</a></h5>\n'
            f"<h4>{escape(product.title)}</h5>\n<h5>{product.price_tag}</h6>"
        )

    def item(self, session, asin, keywords, page, options):
        product, chosen = self.product(asin), ast.literal_eval(options)
        rest = f"{quote(keywords, safe='')}/{page}"
        written = quote(options, safe="")
        rows = []
        for name, values in product.options.items():
            rows.append(f"<h4>{escape(name)}</h4>")
            for value in values:
                with_it = quote(str({**chosen, name: value}), safe="")
                where = f"/item_page/{session}/{asin}/{rest}/{with_it}"
                rows.append(
                    f'<input type="radio" name="{escape(name)}" value="{escape(value)}" '
                    f'data-url="{escape(where)}">\n<label>{escape(value)}</label>'
                )
        subs = [
            button(name, f"/item_sub_page/{session}/{asin}/{rest}/{name}/{written}")
            for name in ("Description", "Features", "Reviews")
        ]
        return "\n".join(
            [
                self.instruction(session),
                button("Back to Search", f"/{session}"),
                button("< Prev", f"/search_results/{session}/{rest}"),
                *rows,
                f"<h2>{escape(product.title)}</h2>\n<h4>Price: {product.price_tag}</h4>\n<h4>Rating: N.A.</h4>",
                *subs,
                button("Buy Now", f"/done/{session}/{asin}/{written}", "btn btn-lg purchase"),
            ]
        )

    def sub_page(self, session, asin, keywords, page, name, options):
        product = self.product(asin)
        told = {"Description": [product.description], "Features": product.bullets, "Reviews": []}[name]
        back = f"/item_page/{session}/{asin}/{quote(keywords, safe='')}/{page}/{quote(options, safe='')}"
        return "\n".join(
            [
                self.instruction(session),
                button("Back to Search", f"/{session}"),
                button("< Prev", back),
                *[f'<li><p class="product-info"> {escape(text)}</p></li>' for text in told],
            ]
        )

    def done(self, session, asin, options):
        product = self.product(asin)
        score = score_of(product, self.goal(session), price_of(product), ast.literal_eval(options), WordTitles())
        told = "a lot" if self.fault == "score" else str(score.value)
        return f'<h1>Thank you for shopping with us!</h1>\n<h3 id="reward">Your score<pre>{told}</pre></h3>'

    def product(self, asin):
        return self.catalogue.store.product(self.catalogue.store.number_of(asin))

    def instruction(self, session):
        return f'<div id="instruction-text"><h4>Instruction: <br>{escape(self.goal(session).text)}</h4></div>'


def button(name, where, classes="btn btn-primary"):
    return (
        f'<form method="post" action="{escape(where)}">\n'
        f'<button type="submit" class="{classes}">{escape(name)}</button>\n</form>'
    )


class Handler(BaseHTTPRequestHandler):
    site: Site

    def do_GET(self):
        self.answer()

    def do_POST(self):
        length = int(self.headers.get("Content-Length") or 0)
        form = parse_qs(self.rfile.read(length).decode("utf-8"))
        if "search_query" in form:
            session = self.path.strip("/")
            keywords = str(form["search_query"][0].lower().split(" "))
            self.send_response(302)
            self.send_header("Location", f"/search_results/{session}/{quote(keywords, safe='')}/1")
            self.send_header("Content-Length", "0")
            self.end_headers()
            return
        self.answer()

    def answer(self):
        site = self.site
        site.asked.append((self.path, self.headers.get("Authorization")))
        if site.fault == "hangs":
            time.sleep(3)
        if site.fault == "busy once":
            site.fault = ""
            self.send_error(503)
            return
        if site.fault == "breaks":
            self.send_error(500)
            return
        body = (
            "" if site.fault == "empty" else site.page([unquote(part) for part in self.path.strip("/").split("/")])
        )
        payload = FRAME.format(body=body).encode("utf-8")
        self.send_response(200)
        self.send_header("Content-Type", "text/html; charset=utf-8")
        self.send_header("Content-Length", str(len(payload)))
        self.end_headers()
        self.wfile.write(payload)

    def log_message(self, *_):
        pass


@pytest.fixture(scope="module")
def local():
    return make_task_source("webshop", max_turns=15, **LOCAL)


@pytest.fixture
def site(local):
    site = Site(local.catalogue())
    handler = type("SiteHandler", (Handler,), {"site": site})
    server = ThreadingHTTPServer(("127.0.0.1", 0), handler)
    thread = threading.Thread(target=server.serve_forever, daemon=True)
    thread.start()
    site.url = f"http://127.0.0.1:{server.server_port}"
    yield site
    server.shutdown()
    server.server_close()
    thread.join()


@pytest.fixture
def served(site, local):
    goals = len(local.catalogue().goals)
    return make_task_source(
        "webshop", max_turns=15, step_timeout=20, server=site.url, server_goals=goals, test_goals=20, dev_goals=0
    )


def act(episode, command):
    return step(episode, write_turn("so", command))


def choices_of(result):
    return result.observation.split("Commands that are possible now:\n")[-1].splitlines()


def test_the_site_and_the_engine_show_the_same_pages_and_scores(local, served):
    """All kinds of pages, the options chosen, and the score; the site's texts begin with the instruction."""
    for task in local.sample("train", 4, seed=0):
        goal = local.catalogue().goals[task.payload["number"]]
        *before, buy = [turn.command for turn in local.scripted(task, 0).turns]
        detour = ["click[next >]", "click[< prev]", "click[nowhere]", *before[1:]]
        looks = ["click[description]", "click[< prev]", "click[features]", "click[< prev]", "click[reviews]"]
        commands = [before[0], *detour, *looks, "click[< prev]", buy]
        near, far = begun(local.make(task)), begun(served.make(served.tasks("train")[task.payload["number"] - 20]))
        for command in commands:
            one, other = act(near, command), act(far, command)
            assert (one.done, one.reward) == (other.done, other.reward)
            if not one.done:
                assert other.observation == f"Instruction: [SEP] {goal.text} [SEP] {one.observation}"
        assert one.done
        assert one.info["score"] == other.info["score"] > 0


def test_what_the_site_sees_is_a_new_session_of_the_goal_for_each_episode(site, served):
    task = served.tasks("train")[3]
    for _ in range(2):
        begun(served.make(task))
    sessions = [path.strip("/") for path, _ in site.asked]
    assert len(set(sessions)) == 2
    assert all(session.endswith("_fixed_23") for session in sessions)


def test_a_token_is_sent_where_there_is_one(site, served, monkeypatch):
    monkeypatch.setenv("EMPG_WEBSHOP_TOKEN", "secret")
    begun(served.make(served.tasks("train")[0]))
    assert site.asked[-1][1] == "Bearer secret"


@pytest.mark.parametrize(
    "command",
    [
        "search[a/b? <r> % \\ #]",
        "search[" + "x y " * 25_000 + "]",
        "search[\ud83d 東京]",
        "search[[]",
        "search[/]",
    ],
)
def test_any_search_reaches_the_site_as_words(served, command):
    episode = begun(served.make(served.tasks("train")[0]))
    result = act(episode, command)
    assert not result.done
    assert result.observation.startswith(("Instruction:", "WebShop"))


@pytest.mark.parametrize("command", ["click[buy now]", "click[\ud83d]", "click[" + "x" * 100_000 + "]", "buy"])
def test_what_the_page_does_not_offer_asks_the_site_for_nothing(site, served, command):
    episode = begun(served.make(served.tasks("train")[0]))
    asked = len(site.asked)
    assert act(episode, command).observation.split(SEPARATOR)[0] == "WebShop"
    assert len(site.asked) == asked


def test_a_server_that_is_busy_is_asked_again(site, served):
    site.fault = "busy once"
    begun(served.make(served.tasks("train")[0]))
    assert len(site.asked) == 2


@pytest.mark.parametrize(
    ("fault", "within", "said"),
    [
        ("breaks", 20, "status 500"),
        ("empty", 20, "no search bar"),
        ("hangs", 0.6, "attempt.* failed.*: "),
    ],
)
def test_a_server_that_fails_is_an_error_and_no_reward(site, local, fault, within, said):
    site.fault = fault
    source = make_task_source("webshop", step_timeout=within, server=site.url)
    with pytest.raises(ShopServerError, match=said) as raised:
        begun(source.make(source.tasks("train")[0]))
    assert site.url in str(raised.value)


def test_a_server_that_is_gone_is_an_error(site, served):
    source = make_task_source("webshop", step_timeout=0.5, server="http://127.0.0.1:9")
    with pytest.raises(ShopServerError, match="ConnectError"):
        begun(source.make(source.tasks("train")[0]))


def test_a_server_that_breaks_in_the_middle_is_an_error(site, local, served):
    task = local.tasks("train")[0]
    commands = [turn.command for turn in local.scripted(task, 0).turns]
    episode = begun(served.make(served.tasks("train")[0]))
    for command in commands[:-1]:
        act(episode, command)
    site.fault = "score"
    with pytest.raises(ShopServerError, match="shows the score 'a lot'; it must be a number"):
        act(episode, commands[-1])


def test_a_served_shop_keeps_the_rules_of_environments(site, local):
    settings = {"server": site.url, "server_goals": len(local.catalogue().goals), "test_goals": 20, "dev_goals": 0}
    findings = check_environment("webshop", settings)
    assert [finding for finding in findings if finding.verdict == "broken"] == []
