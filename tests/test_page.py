"""docs/play.html in a browser: its mathematics against Python's, and a person's ways."""

import os
import shutil
from functools import partial

import pytest
import torch
from playwright.sync_api import sync_playwright

from comparison import tables
from comparison.predictors import Exact, from_velocity
from comparison.processes import geometric, kept_rows, linear, respaced
from comparison.samplers import ddim, ddpm, langevin, normal_like, probability_flow
from comparison.tables import weights
from comparison.training import load
from diffusion import forward, noise_schedule
from tests.common import ROOT, double, seeded_by
from tests.laws import law

pytestmark = [pytest.mark.xdist_group("page"), pytest.mark.slowest]
CHROMIUM = shutil.which("chromium")
if not CHROMIUM and "CI" not in os.environ:
    pytest.skip("needs chromium", allow_module_level=True)


@pytest.fixture(scope="module")
def browser():
    with sync_playwright() as playwright:
        # Its sandbox refuses the administrator, as whom containers run.
        flags = ["--no-sandbox"]
        yield playwright.chromium.launch(executable_path=CHROMIUM, args=flags)


@pytest.fixture
def opened(browser):
    """Opens the page at a hash; at the end nothing may have gone to the console."""
    messages, contexts = [], []

    def go(hash="at=0", width=1280, height=720, **options):
        size = {"width": width, "height": height}
        contexts.append(browser.new_context(viewport=size, **options))
        page = contexts[-1].new_page()
        page.on("console", lambda message: messages.append(message.text))
        page.on("pageerror", lambda error: messages.append(str(error)))
        page.goto(f"file://{ROOT}/docs/play.html#{hash}")
        return page

    yield go
    for context in contexts:
        context.close()
    assert messages == []


def visit(page, hash):
    """Follows a link within the page, to another hash than its own."""
    way = "new Promise((go) => addEventListener('hashchange', go, { once: true }))"
    page.evaluate(f"(hash) => {{ location.hash = hash; return {way}; }}", hash)


def end(page):
    """What the way back ends at, (n, 2), and how far it is from the law."""
    page.wait_for_function("scene && scene.states.length === scene.total")
    last = "Array.from(scene.seen(scene.states.at(-1), 1))"
    last, far = page.evaluate(f"[{last}, measure({last}, scene.law)]")
    return tensor(last), far


def tensor(numbers):
    return torch.tensor(numbers, dtype=torch.float64).view(-1, 2)


def picture(page):
    """What is drawn, after two frames."""
    frames = "requestAnimationFrame(() => requestAnimationFrame(go))"
    seen = f"new Promise((go) => {frames}).then(() => view.toDataURL())"
    return hash(page.evaluate(seen))


# The mathematics


@pytest.fixture
def maths(opened):
    page = opened()
    return page, tensor(page.evaluate("[...scene.law.data]"))


def replayed(x, seed, count):
    """The noise that a generator of this seed gives `count` times for x."""
    generator = seeded_by(seed)
    return [
        z for _ in range(count) for z in normal_like(x, generator).flatten().tolist()
    ]


def test_the_data_are_the_drawing_and_the_committed_network(tmp_path, monkeypatch):
    monkeypatch.setattr(weights, "PAGE", tmp_path / "weights.js")
    assert len([*tables.TABLES["play"].rows(1)]) == 1
    committed = (ROOT / "docs" / "weights.js").read_bytes()
    same = (tmp_path / "weights.js").read_bytes() == committed
    assert same  # without a comparison letter by letter, which takes hours


@pytest.mark.parametrize("name", ["ddpm", "ddim", "flow", "langevin"])
def test_samplers_are_those_of_python(maths, name):
    """Every state, from the same start and noise, with either predictor."""
    page, data = maths
    sampler, process = {
        "ddpm": (ddpm, respaced(linear(), 20)),
        "ddim": (ddim, respaced(linear(), 20)),
        "flow": (partial(probability_flow, levels=20), linear()),
        "langevin": (partial(langevin, steps=2, denoise=True), geometric()),
    }[name]
    x_T = process.noise[-1] * double(15, 2, seed=1)
    start = x_T / process.signal[-1] if name == "flow" else x_T
    learned = from_velocity(load("points", law("points")).double())
    for kind, predictor in (
        ("exact(scene.law.data)", Exact(data)),
        ("learned", learned),
    ):
        states = [*sampler(predictor, process, x_T, generator=seeded_by(2))]
        got = page.evaluate(
            f"""([name, x, noise]) => {{
                const {{ sampler, process }} = WAYS[name], normal = () => noise.shift();
                const start = new Float64Array(x);
                const path = sampler({kind}, process(20), start, normal, 2);
                return [...path].flatMap((state) => [...state]);
            }}""",
            [name, start.flatten().tolist(), replayed(x_T, 2, 20)],
        )
        torch.testing.assert_close(tensor(got), torch.cat(states), rtol=1e-9, atol=1e-9)


def test_the_levels_left_are_those_of_python(maths):
    page, _ = maths
    for steps in map(int, page.locator("[name=steps] option").all_inner_texts()):
        got = page.evaluate(f"[...WAYS.ddpm.process({steps}).signal]")
        expected = linear().signal[kept_rows(1000, steps)]
        assert got == pytest.approx(expected.tolist(), rel=1e-12)


@pytest.mark.parametrize("beta_end", [0.02, 0.6])
def test_the_whole_cloud_there_and_back(maths, beta_end):
    page, data = maths
    alphas, _ = noise_schedule(beta_end=beta_end)
    got = page.evaluate(
        """([end, x, noise]) => [...forward(scaledLinear(end), new Float64Array(x),
            () => noise.shift())].flatMap((state) => [...state])""",
        [beta_end, data[:9].flatten().tolist(), replayed(data[:9], 4, 30)],
    )
    expected = forward(data[:9].flatten(), alphas, seed=4)
    torch.testing.assert_close(tensor(got), expected.view(-1, 2))
    for start in ("there", "noise"):
        visit(page, f"datum=cloud&beta={beta_end}&start={start}&at=0")
        cloud, far = end(page)
        torch.testing.assert_close(cloud, data, rtol=0, atol=1e-9)
        assert far == pytest.approx([100, 100, 0], abs=1e-6)
        x_T = tensor(page.evaluate("[...scene.states[31]]"))
        assert start == "there" or x_T.std() == pytest.approx(1, abs=0.1)
    page.wait_for_function("scene.ranges.length === 10")
    assert page.locator("tbody td:last-child").all_inner_texts() == ["", "", ""]


def test_measures_are_those_of_python(maths):
    page, _ = maths
    points = law("points")
    for samples in (double(400, 2, seed=3).float(), points.draw(300, 0)):
        flat = samples.flatten().tolist()
        got = page.evaluate("(x) => measure(new Float64Array(x), scene.law)", flat)
        assert got == pytest.approx(points.measure(samples)[:3], abs=1e-3)


@pytest.mark.parametrize(
    "normal", ["randomness(1).normal", "(_, k) => randomness(k + 1).normal()"]
)
def test_noise_is_normal_along_a_seed_and_across_seeds(maths, normal):
    page, _ = maths
    x = tensor(page.evaluate(f"Array.from({{ length: 100000 }}, {normal})")).flatten()
    assert (x[1:] * x[:-1]).mean().item() == pytest.approx(0, abs=0.02)
    for power, moment in ((1, 0), (2, 1), (3, 0), (4, 3)):
        assert (x**power).mean().item() == pytest.approx(moment, abs=0.15)


# A person's ways


def test_it_plays_to_the_end_by_itself_but_for_the_calm(opened):
    page = opened("steps=5")
    page.wait_for_function("play.textContent === 'Pause' && time.value > 0")
    page.wait_for_function("play.textContent === 'Play' && time.value == 11")
    assert "ends here" in page.inner_text("#step")
    page.wait_for_function("location.hash.endsWith('at=11')")
    page.click("#play")  # from the start again
    page.wait_for_function("time.value > 0 && time.value < 11")
    page.click("#play")
    assert page.inner_text("#play") == "Play"
    calm = opened("steps=5", reduced_motion="reduce")
    calm.wait_for_function("location.hash.endsWith('at=0')")
    assert calm.inner_text("#play") == "Play"


def test_the_slider_scrubs_between_noise_and_face(opened):
    page = opened("colours=on&at=51")
    end(page)
    noise = picture(page)
    page.fill("#time", "101")
    assert picture(page) != noise
    page.wait_for_function("location.hash.endsWith('at=101')")
    page.fill("#time", "51")
    assert picture(page) == noise
    page.wait_for_function("scene.ranges.length === 10")
    first = "String(measure(scene.states[0], scene.law))"  # which is no draw of its own
    assert not page.evaluate(f"scene.ranges.map(String).includes({first})")
    rows = page.locator("tbody td:last-child").all_inner_texts()
    assert rows[0] == "100" and " to " in rows[1] and " to " in rows[2]
    now = map(float, page.locator("tbody td:nth-child(2)").all_inner_texts())
    assert [*now] == pytest.approx([12, 28, 5], rel=0.5)  # the ceiling's
    page.select_option("[name=way]", "langevin")  # which starts back there as well
    page.wait_for_function("scene.name === 'langevin' && shown === scene.T + 1")


def test_arrows_lead_a_third_of_the_way(opened):
    """At t = T, to the centre."""
    page = opened("arrows=on&at=51")
    page.wait_for_function("shown === 51")  # a busy machine computes it for a while
    page.evaluate(
        """() => { window.drawn = []; shown = -1;
            for (const name of ["moveTo", "lineTo"])
                CanvasRenderingContext2D.prototype[name] = (...at) => drawn.push(...at); }"""
    )
    picture(page)
    starts, ends = tensor(page.evaluate("drawn")).view(-1, 2, 2)[:400].unbind(1)
    assert starts.std() > 200
    assert (ends - 2 / 3 * starts).std(dim=0).max() < 3


CONTROLS = {
    "[name=datum][value=cloud]": "check",
    "[name=way] ddpm": "select_option",
    "[name=way] flow": "select_option",
    "[name=way] langevin": "select_option",
    "[name=steps] 20": "select_option",
    "[name=score][value=network]": "check",
    "[name=start][value=noise]": "check",
    "[name=arrows]": "check",
    "[name=colours]": "check",
    "#reseed": "click",
}


def test_every_control_changes_what_is_seen_and_is_in_the_address(opened):
    base, scenes = "steps=5&at=9", {}
    page = opened(base, 360, 740)
    end(page)
    first = picture(page)
    for what, how in CONTROLS.items():
        getattr(page, how)(*what.split())
        assert end(page)[1][0] > 25
        scenes[picture(page)] = page.url.partition("#")[2]
        visit(page, base)
    scenes[first] = base
    assert len(scenes) == len(CONTROLS) + 1
    for seen, address in scenes.items():
        visit(page, address)
        end(page)
        assert picture(page) == seen


ZIGZAG = [(0.2, 0.2), (0.8, 0.3), (0.2, 0.6), (0.8, 0.8)]


@pytest.mark.parametrize("kind", ["mouse", "finger"])
def test_a_sketch_comes_back_as_itself(opened, kind):
    """Its corners lie where they were drawn; the network, which knows the face, is off."""
    page = opened("score=network&at=0&steps=10", has_touch=kind == "finger")
    page.check("[name=drawing][value=own]")
    assert page.evaluate("scene") is None and "pad" in page.inner_text("#step")
    box = page.locator("#pad").bounding_box()
    places = [
        (box["x"] + u * box["width"], box["y"] + v * box["height"]) for u, v in ZIGZAG
    ]
    if kind == "mouse":
        page.mouse.move(*places[0])
        page.mouse.down()
        for place in [*places[1:], places[-1]]:
            page.mouse.move(*place)
        page.mouse.up()
        drawn = page.evaluate("own.length")
        page.mouse.move(*places[1])  # which draws nothing any more
        assert page.evaluate("sketched(), own.length") == drawn
    else:
        send = page.context.new_cdp_session(page).send
        button = page.locator("#play").bounding_box()
        for k, (x, y) in enumerate(places):
            name = "touchMove" if k else "touchStart"
            touch = {"type": name, "touchPoints": [{"x": x, "y": y}]}
            send("Input.dispatchTouchEvent", touch)
        send("Input.dispatchTouchEvent", {"type": "touchEnd", "touchPoints": []})
        page.touchscreen.tap(button["x"] + 20, button["y"] + 10)  # at once
        page.wait_for_function("play.textContent === 'Pause'")
    cloud, (on_drawing, *_) = end(page)
    assert on_drawing > 95 and page.is_hidden("[name=score][value=network]")
    centre, scale = page.evaluate("[scene.law.centre, scene.law.scale]")
    corners = (6 * tensor(ZIGZAG) - 3) * tensor([1, -1]) + tensor([0, 1])
    away = torch.cdist(corners, scale * cloud + tensor(centre))
    assert away.min(dim=1).values.max() < 0.3
    page.click("#clear")
    assert page.evaluate("scene") is None and page.inner_text("#play") == "Play"
    page.click("#pad", button="right")
    assert page.evaluate("own") is None
    page.click("#pad")  # a dot
    assert page.evaluate("own.length") > 3
    # More than 2,500 points are thinned evenly.
    points = tensor(page.evaluate("ink.fillRect(0, 0, 150, 150), sketched(), [...own]"))
    assert len(points) == 2500
    assert points.mean(dim=0).tolist() == pytest.approx([0, 1], abs=0.1)
    assert points.std(dim=0).tolist() == pytest.approx([3**0.5] * 2, abs=0.05)


def test_by_keyboard_alone(opened):
    page = opened("steps=10&at=4")
    end(page)
    press = page.keyboard.press
    for key, index in (("ArrowRight", 5), ("ArrowLeft", 3), ("End", 21), ("Home", 0)):
        for focused in ("blur", "focus"):  # on the slider it does it once as well
            page.evaluate(f"time.{focused}(), go(false, 4)")
            press(key)
            page.wait_for_function(f"Number(time.value) === {index}")
    for word in ("Pause", "Play"):
        press("Space")
        assert page.inner_text("#play") == word
    reached = []
    for _ in range(9):
        press("Tab")
        reached.append(page.evaluate("document.activeElement.name"))
    first = ["datum", "drawing", "way", "steps", "score", "start", "seed"]
    assert reached == [*first, "", "arrows"]
    page.focus("#play")
    press("Space")  # which its button hears by itself
    assert page.inner_text("#play") == "Pause"
    press("Home")
    page.focus("#reseed")
    press("Space")
    assert page.input_value("[name=seed]") == "2" and page.inner_text("#play") == "Play"
    page.focus("[name=datum]:checked")
    press("ArrowLeft")
    assert page.evaluate("scene.cloud")
    page.fill("[name=seed]", "abc")
    page.click("#reseed")  # from the 1 that it falls back to
    assert page.input_value("[name=seed]") == "2"
    page.check("[name=drawing][value=own]")
    assert page.is_disabled("#play")
    press("q")
    assert page.evaluate("own.length") > 1000


def test_what_an_address_does_not_know_is_ignored(opened):
    strange = "way=<b>&steps=7&datum=x&seed=x&beta=1&at=a&foo=1&arrows=maybe&time=3&length=2&=&%"
    page = opened(strange)
    known = (
        "datum=point&drawing=face&way=ddim&steps=50&beta=0.6&score=exact&start=there"
    )
    page.wait_for_function(f"location.hash === '#{known}&seed=1&at=0'")
    visit(page, "way=flow&steps=5&seed=9&colours=on&at=1e9")
    page.wait_for_function(
        "scene.name === 'flow' && scene.total === 12 && wanted === 1"
    )
    assert page.is_checked("[name=colours]") and page.input_value("[name=seed]") == "9"


@pytest.mark.parametrize("hash", ["at=51", "drawing=own&at=0", "datum=cloud&at=40"])
def test_nothing_overflows(opened, hash):
    page = opened(hash, 360, 740)
    page.wait_for_function("!scene || shown > 0")
    for width, height in ((360, 740), (740, 360), (1280, 720)):
        page.set_viewport_size({"width": width, "height": height})
        picture(page)  # two frames later
        assert page.evaluate("document.documentElement.scrollWidth") <= width
        # The picture, the slider and what it says are seen together.
        top, bottom = page.evaluate(
            "[view.getBoundingClientRect().top, step.getBoundingClientRect().bottom]"
        )
        assert bottom - top <= height
        for box in page.locator(":is(button, select, label):visible").all():
            box = box.bounding_box()
            assert box["height"] >= 28 and box["x"] + box["width"] <= width


def test_a_thousand_steps_are_computed_while_one_looks(opened):
    page, counts = opened("steps=1000&at=0"), []
    for _ in range(3):
        page.wait_for_timeout(200)
        counts.append(page.evaluate("scene.states.length"))
    assert 0 < counts[0] < counts[1] < counts[2] < 2002
    page.fill("#time", "2001")
    assert page.evaluate("wanted") == 2001 > page.evaluate("shown")
