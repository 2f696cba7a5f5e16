"""WebShop's files: what is read of them, and what is said of those that are broken."""

import gzip
import json
from dataclasses import asdict

import pytest

from megatron_empg.environments.registry import make_task_source
from megatron_empg.environments.webshop import goals
from megatron_empg.environments.webshop.catalogue import CatalogueFiles
from megatron_empg.environments.webshop.errors import CatalogueError
from megatron_empg.environments.webshop.goals import price_of
from megatron_empg.environments.webshop.product import Product
from megatron_empg.environments.webshop.store import ListingStore

LAMP = {
    "asin": "B01LAMP001",
    "name": "Brass Desk Lamp",
    "full_description": "A lamp/light.",
    "small_description": ["bright", "small"],
    "pricing": "$19.99",
    "category": "garden",
    "query": " Desk Lamps ",
    "product_category": "Home › Lighting › Lamps",
    "customization_options": {
        "Color": [{"value": " Black/White ", "price": "$1"}, {"value": "RED"}],
        "Size": [{"value": "small"}, {"value": "large"}],
        "Style": None,
    },
    "images": ["x"],
    "brand": "ignored",
}
SOAP = {
    "asin": "B01SOAP001",
    "name": "Olive Soap",
    "full_description": None,
    "small_description": "mild",
    "pricing": "$3.00$5.50",
    "category": "beauty",
    "query": "soaps",
    "product_category": "Beauty › Bath › Soaps",
    "customization_options": "",
}
ATTRIBUTES = {
    "B01LAMP001": {
        "attributes": ["easy to use"],
        "instruction": "i need a lamp",
        "instruction_attributes": ["easy"],
    },
    "B01SOAP001": {"attributes": ["plant based"]},
    "B0UNKNOWN": {"attributes": ["of nothing"]},
}
HUMAN = {
    "B01SOAP001": [
        {"instruction": "a soap for me.", "instruction_attributes": ["mild"], "instruction_options": ["2 pack"]},
        {"instruction": "nothing asked", "instruction_attributes": [], "instruction_options": []},
    ]
}


@pytest.fixture
def files(tmp_path):
    def write(products=(LAMP, SOAP), attributes=ATTRIBUTES, human=None, first=None):
        paths = {}
        given = {"products": list(products), "attributes": attributes, "instructions": human}
        for name, value in given.items():
            paths[name] = None
            if value is not None:
                paths[name] = tmp_path / f"{name}.json"
                paths[name].write_text(json.dumps(value), encoding="utf-8")
        return CatalogueFiles(**paths, first=first)

    return write


def products(catalogue):
    return {product.asin: product for product in catalogue.store.products()}


def test_a_product_is_read_as_webshop_reads_it(files):
    lamp = products(files().load())["B01LAMP001"]
    assert asdict(lamp) == {
        "asin": "B01LAMP001",
        "title": "Brass Desk Lamp",
        "description": "A lamp/light.",
        "bullets": ("bright", "small"),
        "category": "garden",
        "query": "desk lamps",
        "product_category": "Home › Lighting › Lamps",
        "prices": (19.99,),
        "options": {"color": ("black | white", "red"), "size": ("small", "large")},
        "attributes": ("easy to use",),
    }
    assert lamp.price_tag == "$19.99"


def test_a_range_of_prices_costs_something_within_it_and_the_same_each_time(files):
    soap = products(files().load())["B01SOAP001"]
    assert soap.price_tag == "$3.0 to $5.5"
    assert 3.0 <= price_of(soap) <= 5.5
    assert price_of(soap) == price_of(soap)
    assert (soap.bullets, soap.description, soap.options) == (("mild",), "", {})


@pytest.mark.parametrize("nothing", [None, "", "missing"])
def test_a_product_without_a_price_costs_a_hundred_dollars(files, nothing):
    plain = {key: value for key, value in LAMP.items() if key != "pricing"}
    product = plain if nothing == "missing" else plain | {"pricing": nothing}
    found = products(files([product]).load())["B01LAMP001"]
    assert (found.prices, found.price_tag) == ((100.0,), "$100.0")


def test_a_product_without_attributes_has_webshops_dummy(files):
    assert products(files(attributes={"B01LAMP001": ATTRIBUTES["B01LAMP001"]}).load())[
        "B01SOAP001"
    ].attributes == ("DUMMY_ATTR",)


def test_products_are_left_out_that_webshop_leaves_out(files):
    strange = [LAMP | {"asin": "nan"}, LAMP | {"asin": "B0TOOLONGTOBE"}, LAMP, LAMP | {"name": "again"}]
    found = products(files(strange).load())
    assert list(found) == ["B01LAMP001"]
    assert found["B01LAMP001"].title == "Brass Desk Lamp"


def test_as_many_records_are_read_as_asked_for(files):
    assert list(products(files(first=1).load())) == ["B01LAMP001"]


def test_synthetic_goals_go_with_every_combination_of_options(files):
    goals = list(files().load().goals)
    assert len(goals) == 4
    asked = sorted(tuple(option.value for option in goal.options) for goal in goals)
    assert asked == [("black | white", "large"), ("black | white", "small"), ("red", "large"), ("red", "small")]
    one = next(goal for goal in goals if goal.options[0].value == "red" and goal.options[1].value == "small")
    told = f"i need a lamp with color: red, and size: small, and price lower than {one.price_limit:.2f} dollars"
    assert one.text == told
    assert one.price_limit in (30.0, 40.0, 50.0)
    assert len({goal.price_limit for goal in goals}) == 1
    assert one.attributes == ("easy",)


def test_what_people_asked_for_comes_instead_where_it_is_given(files):
    (goal,) = files(human=HUMAN).load().goals
    assert goal.text.startswith("a soap for me, and price lower than ")
    assert goal.options == (("", "2 pack"),)
    assert goal.attributes == ("mild",)


def test_synthetic_goals_may_be_asked_for_where_people_asked_too(files):
    named = files(human=HUMAN)
    given = {"products": named.products, "attributes": named.attributes, "instructions": named.instructions}
    human = make_task_source("webshop", **given)
    synthetic = make_task_source("webshop", **given, goals="synthetic")
    assert [len(source.catalogue().goals) for source in (human, synthetic)] == [1, 4]


def test_goals_of_dear_products_have_no_limit(files):
    dear = files([LAMP | {"pricing": "$985.00"}]).load().goals
    assert {goal.price_limit for goal in dear} == {1_000_000.0}
    assert all("price" not in goal.text for goal in dear)


def test_compressed_files_are_read(files, tmp_path):
    named = files()
    packed = tmp_path / "products.json.gz"
    packed.write_bytes(gzip.compress(named.products.read_bytes()))
    assert len(CatalogueFiles(packed, named.attributes, None).load().goals) == 4


def test_half_a_surrogate_pair_in_a_file_becomes_a_letter_that_can_be_read(files):
    found = products(files([LAMP | {"name": "Lamp \ud83d"}]).load())
    assert found["B01LAMP001"].title == "Lamp ?"


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ({"name": None}, r'record 1 \(to line 1\): field "name" must be a text; found null'),
        ({"asin": 7}, 'field "asin" must be a text; found'),
        ({"small_description": [1]}, 'field "small_description" must be a list of texts; found a list'),
        ({"pricing": "free"}, 'field "pricing" must be dollars such as'),
        ({"pricing": "$1.2.3"}, 'field "pricing" must be dollars such as'),
        ({"pricing": "$" + "9" * 400}, 'field "pricing" must be dollars such as'),
        ({"pricing": "$1 to $" + "9" * 400}, 'field "pricing" must be dollars such as'),
        ({"customization_options": {"Size": [{"worth": 1}]}}, 'field "customization_options" must be an object'),
        ({"customization_options": [1]}, 'field "customization_options" must be an object of lists'),
    ],
)
def test_a_broken_product_is_named_by_file_record_field_and_rule(files, change, said):
    with pytest.raises(CatalogueError, match=rf"products\.json, .*{said}"):
        files([LAMP | change]).load()


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("", "line 1, after record 0: it is not JSON"),
        ('[{"asin": "B0', "line 1, after record 0: it is not JSON"),
        ("[1]", "an object should stand here; found"),
        ("[]", "there is no product in it"),
        ('{"asin": 1}', "it is not JSON"),
        (json.dumps([LAMP], indent=1) + "]", "line 39, after record 1: it is not JSON"),
    ],
)
def test_a_file_that_is_no_array_of_products_is_named_with_line_and_record(tmp_path, text, said):
    path = tmp_path / "items.json"
    path.write_text(text, encoding="utf-8")
    with pytest.raises(CatalogueError, match=said) as refused:
        CatalogueFiles(path, None, None).load()
    assert str(path) in str(refused.value)


def test_a_file_that_is_no_utf8_is_named(tmp_path):
    path = tmp_path / "items.json"
    path.write_bytes(b'[{"asin": "\xff"}]')
    with pytest.raises(CatalogueError, match="it is not UTF-8"):
        CatalogueFiles(path, None, None).load()


@pytest.mark.parametrize(
    ("attributes", "said"),
    [
        ([], "it is not JSON"),
        ({"B01LAMP001": []}, "'B01LAMP001' .*an object should stand here"),
        ({"B01LAMP001": {"attributes": 1}}, 'field "attributes" must be a list of texts'),
        ({"B01LAMP001": {"instruction": "x", "instruction_attributes": []}}, "instruction_attributes"),
    ],
)
def test_broken_attributes_are_named(files, attributes, said):
    with pytest.raises(CatalogueError, match=rf"attributes\.json, .*{said}"):
        files(attributes=attributes).load()


def test_broken_instructions_are_named(files):
    with pytest.raises(CatalogueError, match=r"instructions\.json, 'B01SOAP001'.*a list of instructions"):
        files(human={"B01SOAP001": {}}).load()


def test_a_missing_file_is_named_before_anything_is_read(files, tmp_path):
    gone = tmp_path / "gone.json"
    with pytest.raises(FileNotFoundError, match=r"gone\.json"):
        make_task_source("webshop", products=gone, attributes=gone)


def test_few_goals_leave_something_to_train_on_or_are_refused(files):
    named = files()
    given = {"products": named.products, "attributes": named.attributes}
    with pytest.raises(ValueError, match=r"4 goals.*leave nothing to train"):
        make_task_source("webshop", **given).tasks("train")
    source = make_task_source("webshop", **given, test_goals=1, dev_goals=1)
    assert [len(source.tasks(split)) for split in ("train", "test_id", "test_ood")] == [2, 1, 0]
    assert {task.kind for task in source.tasks("train")} == {"garden"}
    assert source.measured_as == "WebShop engine, substitute title score"


@pytest.mark.parametrize("options", [20, 70, 400])
def test_a_product_of_more_combinations_than_can_be_kept_is_named(files, options):
    many = {f"option {number}": [{"value": "a"}, {"value": "b"}] for number in range(options)}
    with pytest.raises(
        CatalogueError, match="product 'B01LAMP001': this product has more than the 1,000,000 that"
    ):
        files([LAMP | {"customization_options": many}]).load()
    assert len(
        files([LAMP | {"customization_options": many}], human={"B01LAMP001": HUMAN["B01SOAP001"]}).load().goals
    )


def test_more_goals_than_can_be_kept_are_refused_at_the_product_that_has_them(files, monkeypatch):
    monkeypatch.setattr(goals, "MOST_GOALS", 7)
    asked = {asin: ATTRIBUTES["B01LAMP001"] for asin in ("B01LAMP001", "B01LAMP002")}
    with pytest.raises(
        CatalogueError, match=r"'B01LAMP002': the products up to this one have more than the 7 that"
    ):
        files([LAMP, LAMP | {"asin": "B01LAMP002"}], attributes=asked).load()


def test_more_departments_are_kept_than_two_bytes_count():
    store = ListingStore()
    for number in range(65_540):
        store.add(Product(str(number), "", "", (), f"department {number}", "", "", (1.0,), {}, ()))
    assert len(store.departments) == 65_540
    assert store.category(65_537) == "department 65537"
