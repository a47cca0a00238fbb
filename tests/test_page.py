"""docs/play.html in a browser: its mathematics is Python's, a person's ways work."""

import os
import shutil
from functools import partial

import pytest
import torch
from playwright.sync_api import sync_playwright

from comparison.denoisers import VELOCITY, Exact
from comparison.levels import geometric, karras, linear, respaced
from comparison.rows import measured
from comparison.samplers import ddim, ddpm, heun, langevin, normal_like
from comparison.tables import TABLES, trainings
from comparison.training import load
from diffusion import forward, noise_schedule
from tests.common import ROOT, double, seeded_by
from tests.datasets import dataset, number

pytestmark = [pytest.mark.xdist_group("page"), pytest.mark.slowest]
CHROMIUM = shutil.which("chromium")
if not CHROMIUM and "CI" not in os.environ:
    pytest.skip("needs chromium", allow_module_level=True)


@pytest.fixture(scope="module")
def opened():
    """Loads the page anew, at a hash; at the end nothing may be in the console."""
    messages = []
    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=CHROMIUM)
        page = browser.new_page(has_touch=True)
        page.on("console", lambda message: messages.append(message.text))
        page.on("pageerror", lambda error: messages.append(str(error)))

        def go(hash="at=0", width=1280, height=720, motion="no-preference"):
            page.goto("about:blank")
            page.set_viewport_size({"width": width, "height": height})
            page.emulate_media(reduced_motion=motion)
            page.goto(f"file://{ROOT}/docs/play.html#{hash}")
            return page

        yield go
    assert messages == []


def visit(page, hash):
    """Follows a link within the page, to another hash than its own."""
    way = "new Promise((go) => addEventListener('hashchange', go, { once: true }))"
    page.evaluate(f"(hash) => {{ location.hash = hash; return {way}; }}", hash)


def numbers(page, script):
    return number(page.evaluate(f"Array.from({script})")).view(-1, 2)


def end(page):
    """What the sampler ends at, (n, 2), and how much of it is on the drawing, in %."""
    page.wait_for_function("scene && scene.states.length === scene.total")
    last = "scene.seen(scene.states.at(-1), 0)"
    return numbers(page, last), page.evaluate(f"measure({last}, scene.data)[0]")


def picture(page):
    """What is drawn, after two frames."""
    frames = "requestAnimationFrame(() => requestAnimationFrame(go))"
    seen = f"new Promise((go) => {frames}).then(() => view.toDataURL())"
    return hash(page.evaluate(seen))


def denoisers(page):
    """The page's two, by what they are called there, as Python's."""
    exact = Exact(numbers(page, "scene.data.points"))
    learned = VELOCITY.denoiser(load("points", dataset("points")).double())
    return {"exact(scene.data.points)": exact, "learned": learned}


def replayed(x, seed, count):
    """The noise that a generator of this seed gives `count` times for x."""
    source = seeded_by(seed)
    return torch.cat([normal_like(x, source) for _ in range(count)]).flatten().tolist()


def test_the_data_are_the_drawing_and_the_committed_network(tmp_path, monkeypatch):
    monkeypatch.setattr(trainings, "DOCS", tmp_path)
    assert len([*TABLES["play"](1)]) == 2
    made, kept = ((at / "weights.js").read_bytes() for at in (tmp_path, ROOT / "docs"))
    assert made == kept


@pytest.mark.parametrize("name", ["ddpm", "ddim", "heun", "langevin"])
def test_samplers_are_those_of_python(opened, name):
    """Every state, from the same start and noise, by either denoiser."""
    page, line = opened(), linear()
    sampler, levels, steps = {
        "ddpm": (ddpm, respaced(line, 5), 5),  # of which one lies between two rows
        "ddim": (ddim, respaced(line, 20), 20),
        "heun": (heun, karras(line[0].item(), line[-2].item(), 20), 20),
        "langevin": (partial(langevin, steps=2, denoise=True), geometric(), 20),
    }[name]
    y = levels[0] * double(15, 2, seed=1)
    for asked, denoiser in denoisers(page).items():
        states = [*sampler(denoiser, levels, y, generator=seeded_by(2))]
        got = page.evaluate(
            f"""([y, noise]) => [...sample("{name}", {asked}, LEVELS.{name}({steps}),
                new Float64Array(y), () => noise.shift())].map((state) => [...state])""",
            [y.flatten().tolist(), replayed(y, 2, 20)],
        )
        expected = torch.stack(states).flatten(1)
        torch.testing.assert_close(number(got), expected, rtol=1e-9, atol=1e-9)


@pytest.mark.parametrize("beta_end, start", [(0.02, "noise"), (0.6, "forward")])
def test_one_vector_is_noised_and_comes_back(opened, beta_end, start):
    page = opened(f"treat=vector&beta={beta_end}&start={start}&at=0")
    cloud, points = end(page)[0], numbers(page, "scene.data.points")
    torch.testing.assert_close(cloud, points, rtol=0, atol=1e-9)
    x_T = numbers(page, "scene.states[31].map((v) => v * unit(scene.levels[0]))")
    assert start == "forward" or x_T.std() == pytest.approx(1, abs=0.1)
    got = page.evaluate(
        """([x, noise]) => [...forward(scene.levels, new Float64Array(x),
            () => noise.shift())].map((state) => [...state])""",
        [points[:9].flatten().tolist(), replayed(points[:9], 4, 30)],
    )
    alphas, alpha_bars = noise_schedule(beta_end=beta_end)
    signal = torch.cat([number([1.0]), alpha_bars.sqrt()])[:, None]
    x = forward(points[:9].flatten(), alphas, seed=4)
    torch.testing.assert_close(signal * number(got), x)
    assert page.is_hidden("table")


def test_measures_are_those_of_python(opened):
    page, points = opened(), dataset("points")
    for samples in double(400, 2, seed=3).float(), points.draw(300, 0):
        got = page.evaluate("(x) => measure(x, scene.data)", samples.flatten().tolist())
        assert got == pytest.approx(measured(points, samples)[:3], abs=1e-3)


def test_noise_is_normal_along_a_seed_and_across_seeds(opened):
    page = opened()
    for normal in "randomness(1).normal", "(_, k) => randomness(k + 1).normal()":
        text = page.evaluate(f"Array.from({{ length: 100000 }}, {normal}).join()")
        x = number([*map(float, text.split(","))])
        assert (x[1:] * x[:-1]).mean().item() == pytest.approx(0, abs=0.02)
        moments = [(x**power).mean().item() for power in (1, 2, 3, 4)]
        assert moments == pytest.approx([0, 1, 0, 3], abs=0.15)


# A person's ways


def test_it_plays_to_the_end_by_itself_but_for_the_calm(opened):
    page = opened("steps=5")
    page.wait_for_function("play.textContent === 'Pause' && time.value > 0")
    page.fill("#time", "9")  # which pauses
    page.click("#play")
    page.wait_for_function("location.hash.endsWith('at=11')")
    assert page.inner_text("#play") == "Play"
    assert "Done" in page.inner_text("#step")
    page.click("#play")  # from the start again
    page.wait_for_function("time.value > 0 && time.value < 11")
    page.click("#play")
    assert page.inner_text("#play") == "Play"
    opened("steps=5", motion="reduce")
    page.wait_for_function("location.hash.endsWith('at=0')")  # not so while it plays


def test_the_slider_scrubs_between_noise_and_face(opened):
    page = opened("colours=on&at=51")
    end(page)
    noise = picture(page)
    page.fill("#time", "101")
    assert picture(page) != noise
    page.wait_for_function("location.hash.endsWith('at=101')")
    page.fill("#time", "51")
    assert picture(page) == noise
    page.wait_for_function("scene.references.length === 11")
    rows = page.locator("tbody td:last-child").all_inner_texts()
    assert rows[0] == "100" and " to " in rows[1] and " to " in rows[2]
    meters = "[...document.querySelectorAll('td meter')].map((one) => one.value)"
    assert max(page.evaluate(meters)) < 0.2
    page.select_option("[name=sampler]", "heun")  # which starts there as well
    page.wait_for_function("scene.name === 'heun' && measured === scene.T + 1")
    page.fill("#time", "101")
    page.wait_for_function("measured === 101 && scene.references.length === 11")
    assert min(page.evaluate(meters)) > 0.7


def lines(page, count):
    """The first and the last points of the lines drawn last, (count, 2) each."""
    page.evaluate(
        """() => { const context = view.getContext("2d"); window.drawn = []; shown = -1;
            context.lineTo = (...at) => drawn.push(...at); }"""
    )
    picture(page)
    return numbers(page, f"drawn.slice({-4 * count})").view(-1, 2, 2).unbind(1)


def test_arrows_from_noise_lead_a_third_of_the_way_to_the_centre(opened):
    page = opened("arrows=on&at=50")
    page.wait_for_function("shown === 50")
    starts, ends = lines(page, 400)
    assert starts.std() > 200 and (ends - 2 / 3 * starts).std(dim=0).max() < 6


@pytest.mark.parametrize("denoiser", ["exact", "network"])
def test_lines_lead_from_where_one_points_to_the_estimates(opened, denoiser):
    page = opened(f"denoiser={denoiser}&at=30")
    end(page)
    x, y, width, _ = page.locator("#view").bounding_box().values()
    page.mouse.move(x + width / 4, y + width / 2)
    count = 1 + (denoiser == "network")
    starts, ends = lines(page, count)
    torch.testing.assert_close(starts, number([[250, 500]] * count), rtol=0, atol=1)
    script = "[scene.levels[20], scene.data.centre, scene.data.scale]"
    sigma, centre, scale = map(number, page.evaluate(script))

    def normalised(at):
        main = at * number([0.0092, -0.0092]) + number([-4.6, 5.35])
        return (main - centre) / scale

    y = (1 + sigma**2).sqrt() * normalised(starts[:1])
    for got, known in zip(normalised(ends), denoisers(page).values()):
        torch.testing.assert_close(got[None], known(y, sigma), rtol=0, atol=1e-6)


def test_every_control_changes_what_is_seen_and_is_in_the_address(opened):
    """On a phone, one after the other; links lead to the first and last two scenes."""
    page = opened("steps=5&at=9", 360, 740)
    end(page)
    scenes = {picture(page): "steps=5&at=9"}
    controls = "sampler=heun, sampler=langevin, sampler=ddpm, pure noise, Another, "
    controls += "arrows towards D, colour by end point, trails, steps=10, network, "
    controls += "one vector"
    for what in controls.split(", "):
        name, _, option = what.partition("=")
        if option:
            page.select_option(f"[name={name}]", option)
        else:
            page.locator("form").get_by_text(what, exact=True).click()
        assert end(page)[1] > 25
        scenes[picture(page)] = page.url.partition("#")[2]
    assert len(scenes) == 12
    first, *_, all_but_the_last, last = scenes.items()
    for seen, address in first, all_but_the_last, last:
        visit(page, address)
        end(page)
        assert picture(page) == seen


@pytest.mark.parametrize("kind", ["mouse", "finger"])
def test_a_sketch_comes_back_as_itself(opened, kind):
    """Its corners lie where they were drawn; the network, of the face, is off."""
    page = opened("denoiser=network&at=0&steps=10")
    page.check("[name=data][value=own]")
    assert page.evaluate("scene") is None and "Draw" in page.inner_text("#step")
    x, y, width, height = page.locator("#pad").bounding_box().values()
    corners = [(0.2, 0.2), (0.8, 0.3), (0.2, 0.6), (0.8, 0.8)]
    places = [(x + u * width, y + v * height) for u, v in corners]
    if kind == "mouse":
        page.mouse.move(*places[0])
        page.mouse.down()
        for place in [*places[1:], places[-1]]:
            page.mouse.move(*place)
        page.mouse.up()
    else:
        send = page.context.new_cdp_session(page).send
        for k, (x, y) in enumerate(places):
            at = {"touchPoints": [{"x": x, "y": y}]}
            kind = "touchMove" if k else "touchStart"
            send("Input.dispatchTouchEvent", {"type": kind, **at})
        send("Input.dispatchTouchEvent", {"type": "touchEnd", "touchPoints": []})
        page.tap("#play")  # at once
        page.wait_for_function("play.textContent === 'Pause'")
    cloud, on_drawing = end(page)
    assert on_drawing > 95 and page.is_hidden("[name=denoiser][value=network]")
    centre, scale = page.evaluate("[scene.data.centre, scene.data.scale]")
    corners = (9.2 * number(corners) - 4.6) * number([1, -1]) + number([0, 0.75])
    away = torch.cdist(corners, scale * cloud + number(centre))
    assert away.min(dim=1).values.max() < 0.3
    page.click("#clear")
    assert page.evaluate("scene") is None and page.inner_text("#play") == "Play"
    assert page.input_value("#time") == "0"
    page.click("#pad")  # a dot
    assert page.evaluate("own.length") > 3
    points = numbers(page, "(ink.fillRect(0, 0, 230, 230), sketched(), own)")
    assert len(points) == 2500  # left, evenly, of 52,900
    assert points.mean(dim=0).tolist() == pytest.approx([0, 0.75], abs=0.1)
    assert points.std(dim=0).tolist() == pytest.approx([9.2 / 12**0.5] * 2, abs=0.05)
    page.check("[name=data][value=face]")
    page.click("#play")
    page.wait_for_function("play.textContent === 'Pause' && shown > 0")


def test_it_works_in_other_browsers_or_says_why_not(opened):
    """Without scripts, on a retina screen, for a screen reader; where addresses cannot be
    rewritten, and where a canvas is not read as it was drawn.
    """
    page = opened("steps=200")
    page.wait_for_function("Number(time.value) > 2")
    assert not page.evaluate("time.ariaValueText")  # not one for each state
    page.fill("#time", "9")
    page.wait_for_function("time.ariaValueText?.startsWith('Next, noise is added')")
    page.evaluate("void (history.replaceState = () => { throw Error('no'); })")
    visit(page, "at=7")
    page.wait_for_function("shown === 7")
    read = "{ data: new Uint8ClampedArray(1024).map(() => 256 * Math.random()) }"
    kind = "CanvasRenderingContext2D"
    page.evaluate(f"void ({kind}.prototype.getImageData = () => ({read}))")
    page.check("[name=data][value=own]")
    page.click("#pad")
    assert page.evaluate("own") is None and "privacy" in page.inner_text("#step")
    with page.context.browser.new_context(java_script_enabled=False) as context:
        other = context.new_page()
        other.goto(page.url)
        assert "unpack it" in other.inner_text("#step")
    with page.context.browser.new_context(device_scale_factor=2) as context:
        other = context.new_page()
        other.goto(page.url.replace("data=own", "at=1"))
        wide = "view.width === 2 * view.clientWidth && view.width > 900"
        other.wait_for_function(wide)


def test_by_keyboard_alone(opened):
    page = opened("steps=10&at=4")
    end(page)
    press = page.keyboard.press
    for key, index in ("ArrowRight", 5), ("ArrowLeft", 3), ("End", 21), ("Home", 0):
        for focused in "blur", "focus":  # on the slider it does it once as well
            page.evaluate(f"time.{focused}(), go(false, 4)")
            press(key)
            page.wait_for_function(f"Number(time.value) === {index}")
    for word in "Pause", "Play":
        press("Space")
        assert page.inner_text("#play") == word
    page.press("#play", "Space")  # which its button hears by itself
    assert page.inner_text("#play") == "Pause"
    page.press("[name=treat]:checked", "ArrowLeft")
    assert page.evaluate("scene.vector")
    page.evaluate("window.known = scene")
    for seed, same in ("abc", True), ("", True), ("2", False):
        page.fill("[name=seed]", seed)
        page.press("[name=seed]", "Tab")
        assert page.evaluate("known === scene") == same and "abc" not in page.url
    page.fill("[name=seed]", "abc")
    page.click("#reseed")  # from 1
    assert page.input_value("[name=seed]") == "2"


def test_what_an_address_does_not_know_is_ignored(opened):
    strange = "sampler=<b>&steps=7&treat=x&seed=x&beta=1&at=a&foo=1&arrows=maybe"
    page = opened(f"{strange}&time=3&length=2&=&%")
    known = "treat=points&data=face&sampler=ddim&steps=50&beta=0.6&denoiser=exact"
    page.wait_for_function(f"location.hash === '#{known}&start=forward&seed=1&at=0'")
    visit(page, "sampler=heun&steps=5&seed=9&colours=on&at=1e9")
    assert page.evaluate("[scene.name, scene.total, wanted]") == ["heun", 12, 1]
    assert page.is_checked("[name=colours]") and page.input_value("[name=seed]") == "9"


@pytest.mark.parametrize("hash", ["at=51", "data=own&at=0", "treat=vector&at=40"])
def test_nothing_overflows(opened, hash):
    page = opened(hash, 360, 740)
    page.wait_for_function("!scene || shown > 0")
    for width, height in (360, 740), (740, 360), (1280, 720):
        page.set_viewport_size({"width": width, "height": height})
        picture(page)  # two frames later
        wide, tall, targets = page.evaluate(
            """() => [document.documentElement.scrollWidth,
                state.getBoundingClientRect().bottom - view.getBoundingClientRect().top,
                [...document.querySelectorAll("button, select, label")]
                    .map((target) => target.getBoundingClientRect())
                    .map((box) => [box.height, box.right]).filter(([high]) => high)]"""
        )
        assert wide <= width and tall <= height  # picture, slider and words at once
        assert all(high >= 28 and right <= width for high, right in targets)


def test_a_thousand_steps_are_computed_while_one_looks(opened):
    page, count = opened("steps=1000&at=0"), "scene.states.length"
    for _ in range(3):
        page.wait_for_function(f"{count} > {page.evaluate(count)}")
    assert page.evaluate(count) < 2002
    page.fill("#time", "2001")
    assert page.evaluate("wanted") == 2001 > page.evaluate("shown")
