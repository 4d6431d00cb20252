"""The status page in a real browser, over a running deployment."""

from __future__ import annotations

import os
import re
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, Literal
from urllib.parse import urlsplit

import psycopg
import pytest
from axe_playwright_python.sync_playwright import Axe
from playwright.sync_api import Browser, Locator, Page, expect
from pydantic import SecretStr

from pulso_etl.local.emulator import BigQueryEmulator
from pulso_etl_tests.api.browser import chromium, find_chromium
from pulso_etl_tests.api.conftest import SECRETS, Operation, settings_of
from pulso_etl_tests.api.server import ApiServer
from pulso_etl_tests.api.test_changes import D1, D2, Deployment, deployment
from pulso_etl_tests.dagster_stack import DagsterStack
from pulso_etl_tests.gate import Gate, Way

__all__ = ["deployment"]
PATIENCE_MS = 20_000
RUN_MS = 60_000
"""How long a run may take."""
TITLE = "Tablero de cobranzas"
EXPECTED = re.compile(r"status of (401|409|503)|net::ERR_(CONNECTION_\w+|INCOMPLETE_CHUNKED_ENCODING|EMPTY_RESPONSE)")
"""What Chromium writes on its console for an answer that asks for a token or refuses, and while the server is away."""
RULES = {"resultTypes": ["violations"], "rules": {"target-size": {"enabled": True}}}
"""All rules of axe, and the one of WCAG 2.2 AA that it leaves out by itself."""
LOOKS: list[tuple[Literal["light", "dark"], int]] = [("light", 1280), ("dark", 1280), ("dark", 390), ("light", 390)]
"""Light and dark, on a screen and on a phone."""
Open = Callable[..., Page]


@pytest.fixture(scope="module")
def browser() -> Iterator[Browser]:
    path = find_chromium()
    if path is None:
        pytest.skip("no Chromium is installed (Debian: apt install chromium)")
    expect.set_options(timeout=PATIENCE_MS)
    with chromium(path) as browser:
        yield browser


@pytest.fixture
def open_page(browser: Browser) -> Iterator[Open]:
    """Opens a page of an API. Fails at the end if a page wrote an error to its console or asked another host."""
    contexts = []
    complaints: list[str] = []

    def open_page(api: ApiServer, **options: Any) -> Page:
        context = browser.new_context(**{"locale": "es-PE", "reduced_motion": "reduce"} | options)
        contexts.append(context)
        page = context.new_page()
        page.set_default_timeout(PATIENCE_MS)
        page.on("console", lambda said: complaints.append(said.text) if said.type in ("error", "warning") else None)
        page.on("pageerror", lambda error: complaints.append(str(error)))
        host = urlsplit(api.url).netloc
        page.on("request", lambda asked: complaints.append(asked.url) if urlsplit(asked.url).netloc not in (host, "") else None)
        page.goto(api.url)
        return page

    yield open_page
    for context in contexts:
        context.close()
    assert [told for told in complaints if not EXPECTED.search(told)] == []


def check_accessibility(page: Page) -> None:
    """No rule of axe is violated: by what is seen, and by what the page can unfold."""
    page.evaluate("document.querySelectorAll('details:not([open])').forEach(part => part.open = part.dataset.opened = true)")
    report = Axe().run(page, options=RULES)
    assert report.violations_count == 0, report.generate_report()
    page.evaluate("document.querySelectorAll('[data-opened]').forEach(part => { part.open = false; delete part.dataset.opened })")


def picture(page: Page, state: str) -> None:
    """Checks that the page in that state is accessible. If PULSO_PICTURES names a folder, it does so in every look, and takes a
    picture. The pictures of docs/page.md come from here."""
    folder = os.environ.get("PULSO_PICTURES")
    if folder is None:
        check_accessibility(page)
        return
    for scheme, width in LOOKS:
        page.emulate_media(color_scheme=scheme)
        page.set_viewport_size({"width": width, "height": 800})
        check_accessibility(page)
    page.emulate_media(color_scheme="light")
    page.set_viewport_size({"width": 1280, "height": 620})
    page.evaluate("scrollTo(0, 0)")
    page.screenshot(path=Path(folder) / f"page-{state}.png", scale="css")


def card(page: Page, title: str = TITLE) -> Locator:
    return page.get_by_role("article", name=title)


def days(page: Page, title: str = TITLE) -> Locator:
    """The days of a table in the calendar."""
    return page.get_by_role("row", name=title).get_by_role("button")


def for_engineers(page: Page) -> Locator:
    """The control that opens the part for engineers."""
    return page.get_by_text("Para ingenieros")


def engineers(page: Page, title: str = TITLE) -> Locator:
    """The text about a table in the part for engineers."""
    return page.get_by_role("region", name=title)


def refresh_button(page: Page, title: str = TITLE) -> Locator:
    return card(page, title).get_by_role("button", name=f"Actualizar {title}")


def test_a_refresh_is_asked_for_watched_and_seen_to_its_end(api: ApiServer, stack: DagsterStack, open_page: Open) -> None:
    page, beside = open_page(api), open_page(api)
    page.get_by_label("Aunque estén frescas").check()
    stack.proxy.hold_page(4)
    try:
        refresh_button(page).click()
        expect(card(page)).to_contain_text(re.compile("En cola|En curso"), timeout=RUN_MS)
        assert stack.proxy.held.wait(90)
        for watched in (page, beside):
            expect(card(watched)).to_contain_text("En curso")
            expect(card(watched)).to_contain_text(re.compile(r"\d+ filas hasta ahora"))
        expect(refresh_button(page)).to_have_attribute("aria-disabled", "true")
        late = open_page(api)
        expect(card(late)).to_contain_text("En curso")
        expect(late.get_by_role("row", name=TITLE).get_by_role("cell")).to_have_count(30)
        picture(late, "loading")
    finally:
        stack.proxy.release()
    expect(card(page)).to_contain_text("Actualizado", timeout=RUN_MS)
    told = api.call("GET", "/api/v1/etl/status/table/dashboard_data").json()["table"]
    for watched in (page, beside):
        expect(card(watched)).to_contain_text(re.compile(r"Datos hasta hoy \d\d:\d\d.*Próxima .*(nueva|cambiada|sin cambios)"))
        expect(card(watched)).to_contain_text("Fresco")
        expect(days(watched).last).to_have_accessible_name(re.compile(r"cargado, \d+ filas"))
        for_engineers(watched).click()
        facts = engineers(watched).get_by_role("definition")
        expect(facts.nth(0)).to_have_text(f"{told['rows']}")
        expect(facts.nth(2)).to_have_text("150")
        expect(facts.nth(5)).to_have_text(str(told["data_version"]))
        expect(engineers(watched)).to_contain_text(re.compile(r"Facturado hoy.*MB.*Evitado hoy.*Evitado este mes"))
        spent = watched.get_by_role("table", name="Consultas a BigQuery").get_by_role("row")
        expect(spent.nth(1)).to_have_text(re.compile(r"Hoy[\d.,]+ MB \((menos de )?US\$ "))
        expect(spent.nth(3)).to_have_text(re.compile(r"Previsto a fin de mes[\d.,]+ MB \((menos de )?US\$ "))
    expect(page.get_by_role("listitem").filter(has_text=TITLE).filter(has_text="Cargado").first).to_be_visible()
    expect(page.locator("p[role=status]", has_text=f"{TITLE}: actualizado.")).to_have_count(1)
    engineers(page).get_by_text("Historial").click()
    history = engineers(page).get_by_role("table")
    expect(history.get_by_role("row").nth(1)).to_contain_text(re.compile(r"Cargado.*150"))
    expect(history.get_by_role("link").first).to_have_attribute("href", f"{stack.url}/runs/{told['run_id']}")
    expect(engineers(page).get_by_role("img")).to_have_count(2)

    page.get_by_label("Aunque estén frescas").uncheck()
    refresh_button(page).click()
    expect(card(page)).to_contain_text("Ya estaba fresca")
    expect(card(page)).to_contain_text("Próxima solo a pedido")
    expect(page.get_by_role("heading", level=1)).to_have_text("La actualización automática está apagada")
    picture(page, "automation-off")


def test_an_error_is_told_in_plain_words_and_goes_away(
    api: ApiServer, stack: DagsterStack, emulator: BigQueryEmulator, open_page: Open
) -> None:
    title = "Productividad de agentes"
    page = open_page(api)
    page.get_by_label("Aunque estén frescas").check()
    with emulator.client() as client:
        client.delete_table(stack.data.names["agentes"])
        try:
            refresh_button(page, title).click()
            expect(card(page, title)).to_contain_text("BigQuery no encuentra la tabla de origen", timeout=RUN_MS)
        finally:
            stack.data.seed_into(client)
    expect(page.get_by_role("heading", level=1)).to_have_text("Hay datos que requieren atención")
    assert page.title() == "✕ Hay datos que requieren atención · Pulso"
    expect(page.get_by_role("article").first).to_contain_text(title)
    expect(card(page, title)).to_contain_text("Falló")
    picture(page, "failed")
    page.get_by_role("link", name=title).click()
    problem = page.locator("#problema-productivity_data")
    expect(problem).to_be_in_viewport()
    technical = problem.get_by_text("BigQuery does not know the table")
    expect(technical).to_be_hidden()
    problem.get_by_text("Detalle técnico").click()
    expect(technical).to_be_visible()
    page.context.grant_permissions(["clipboard-read", "clipboard-write"])
    problem.get_by_role("button", name="Copiar el error").click()
    expect(problem.get_by_text("Copiado")).to_be_visible()
    copied = page.evaluate("navigator.clipboard.readText()")
    assert "BigQuery does not know the table" in copied
    assert f"Tabla: {title}" in copied
    expect(days(page, title).last).to_have_accessible_name(re.compile("falló"))
    refresh_button(page, title).click()
    expect(card(page, title)).to_contain_text("Actualizado", timeout=RUN_MS)
    expect(card(page, title)).not_to_contain_text("BigQuery no encuentra")


def test_a_token_is_asked_for_kept_for_the_tab_and_forgotten(guarded: ApiServer, open_page: Open) -> None:
    page = open_page(guarded)
    field = page.get_by_label("Clave de acceso")
    expect(field).to_be_focused()
    field.fill("nonsense")
    field.press("Enter")
    expect(page.get_by_role("alert")).to_contain_text("Esa clave no es válida")
    page.get_by_label("Clave de acceso").fill(SECRETS["read"][0])
    page.get_by_role("button", name="Entrar").click()
    expect(page.get_by_text("Su clave solo permite mirar")).to_be_visible()
    expect(card(page)).to_be_visible()
    expect(page.get_by_role("button", name=re.compile("Actualizar"))).to_have_count(0)
    page.reload()
    expect(card(page)).to_be_visible()
    assert page.evaluate("localStorage.length") == 0
    page.get_by_role("button", name="Olvidar la clave").click()
    expect(page.get_by_label("Clave de acceso")).to_be_visible()
    assert page.evaluate("sessionStorage.length") == 0
    page.get_by_label("Clave de acceso").fill(SECRETS["refresh"][0])
    page.keyboard.press("Enter")
    expect(refresh_button(page)).to_be_visible()


def test_a_link_with_a_token_signs_in_and_does_not_stay_in_the_address(guarded: ApiServer, open_page: Open) -> None:
    page = open_page(guarded)
    expect(page.get_by_label("Clave de acceso")).to_be_visible()
    # In the tab of the page itself, and in a new one.
    page.goto(f"{guarded.url}/#token={SECRETS['read'][0]}")
    expect(page.get_by_text("Su clave solo permite mirar")).to_be_visible()
    assert page.url == f"{guarded.url}/"
    other = page.context.new_page()
    other.goto(f"{guarded.url}/#token={SECRETS['refresh'][0]}")
    expect(refresh_button(other)).to_be_visible()
    assert other.url == f"{guarded.url}/"
    assert SECRETS["refresh"][0] not in str(other.evaluate("JSON.stringify(history.state)"))
    other.reload()
    expect(refresh_button(other)).to_be_visible()


def width_with_large_letters(page: Page) -> int:
    """How wide the page is for a reader whose browser has letters of twice the usual size."""
    session = page.context.new_cdp_session(page)
    session.send("Page.setFontSizes", {"fontSizes": {"standard": 32}})
    letters, width = page.evaluate("[getComputedStyle(document.documentElement).fontSize, document.documentElement.scrollWidth]")
    session.send("Page.setFontSizes", {"fontSizes": {"standard": 16}})
    assert letters == "32px"
    return int(width)


@pytest.mark.parametrize("scheme", ["light", "dark"])
@pytest.mark.parametrize("width", [1280, 390])
def test_the_page_is_accessible_and_fits_the_screen(api: ApiServer, open_page: Open, scheme: str, width: int) -> None:
    page = open_page(api, color_scheme=scheme, viewport={"width": width, "height": 800})
    expect(page.get_by_text("En vivo")).to_be_visible()
    expect(page.get_by_role("row", name=TITLE)).to_be_visible()
    assert page.locator(".strip").evaluate("strip => strip.getBoundingClientRect().bottom") <= 800
    for_engineers(page).click()
    page.get_by_text("Los 30 días en una tabla").click()
    page.get_by_text("Descargar filas (CSV)").click()
    for summary in page.get_by_text(re.compile("^Historial")).all():
        summary.click()
    expect(page.locator("figure").or_(page.get_by_text("Todavía no hay cargas")).first).to_be_visible()
    check_accessibility(page)
    assert page.evaluate("document.documentElement.scrollWidth") <= width
    assert width_with_large_letters(page) <= width
    # On paper: the width of A4, always dark on white, with the time and without buttons.
    page.set_viewport_size({"width": 718, "height": 1000})
    page.emulate_media(media="print", color_scheme="dark" if scheme == "dark" else "light")
    expect(page.get_by_text("Impreso: ")).to_be_visible()
    expect(page.locator("button:visible")).to_have_count(page.locator("button.day:visible").count())
    assert page.evaluate("document.documentElement.scrollWidth") <= 718
    assert page.evaluate("getComputedStyle(document.body).color") == "rgb(22, 38, 43)"


def test_the_routes_are_documented_without_another_host(guarded: ApiServer, open_page: Open) -> None:
    page = open_page(guarded)
    page.goto(f"{guarded.url}/docs")
    page.get_by_label("Clave de acceso").fill(SECRETS["read"][0])
    page.keyboard.press("Enter")
    launch = page.get_by_text("POST /api/v1/etl/refresh/dashboard")
    expect(launch).to_be_visible()
    launch.click()
    expect(page.get_by_text('"max_concurrent": 2')).to_be_visible()
    check_accessibility(page)


@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_the_form_for_the_token_is_accessible(guarded: ApiServer, open_page: Open, scheme: str) -> None:
    page = open_page(guarded, color_scheme=scheme, viewport={"width": 360, "height": 640})
    page.get_by_role("button", name="Entrar").click()
    expect(page.get_by_role("alert")).to_have_text("Escriba su clave.")
    picture(page, "token")


def test_everything_works_by_keyboard(api: ApiServer, open_page: Open) -> None:
    page = open_page(api)
    button = refresh_button(page)
    expect(button).to_have_attribute("aria-disabled", "false")
    page.keyboard.press("Tab")
    expect(page.get_by_role("link", name="Ir a las tablas")).to_be_focused()
    for _ in range(20):
        page.keyboard.press("Tab")
        if button.evaluate("element => element === document.activeElement"):
            break
    expect(button).to_be_focused()
    assert button.evaluate("element => getComputedStyle(element).outlineStyle") == "solid"
    page.keyboard.press("Enter")
    expect(card(page)).to_contain_text(re.compile("Ya estaba fresca|En cola|En curso"))
    # The focus stays on the button.
    expect(button).to_be_focused()
    expect(card(page)).to_contain_text(re.compile("Ya estaba fresca|Actualizado"), timeout=RUN_MS)


def test_the_days_are_read_by_keyboard_and_by_touch_and_older_ones_are_paged(api: ApiServer, open_page: Open) -> None:
    page = open_page(api, has_touch=True)
    told = page.locator(".pager p[role=status]").first
    expect(days(page)).to_have_count(30)
    days(page).last.focus()
    today = told.text_content() or ""
    page.keyboard.press("ArrowLeft")
    expect(days(page).nth(28)).to_be_focused()
    expect(told).not_to_have_text(today)
    days(page, "Evolución diaria").nth(3).tap()
    expect(told).to_contain_text("Evolución diaria, ")
    first = days(page).first.get_attribute("aria-label") or ""
    page.get_by_role("button", name="Días anteriores").click()
    expect(page.get_by_role("heading", name="30 días hasta el")).to_be_visible()
    assert days(page).last.get_attribute("aria-label") != first
    page.get_by_role("button", name="Días siguientes").click()
    expect(page.get_by_role("heading", name="Últimos 30 días")).to_be_visible()


def test_without_dagster_the_page_says_so_and_offers_no_refresh(stack: DagsterStack, open_page: Open) -> None:
    with ApiServer(settings_of(stack, dagster_graphql_url="http://127.0.0.1:9/graphql")) as alone:
        page = open_page(alone)
        expect(page.get_by_role("heading", level=1)).to_contain_text("Dagster no responde")
        expect(refresh_button(page)).to_have_attribute("aria-disabled", "true")
        asked: list[str] = []
        page.on("request", lambda request: asked.append(request.url) if request.method == "POST" else None)
        refresh_button(page).press("Enter")
        page.get_by_role("button", name="Actualizar todo").press("Enter")
        expect(card(page)).to_contain_text("Dagster no responde")
        expect(card(page)).to_contain_text("Próxima en pausa")
        picture(page, "dagster-away")
        assert asked == []
        page.close()


def test_the_page_finds_its_way_back_when_the_server_was_away(stack: DagsterStack, open_page: Open) -> None:
    with ApiServer(settings_of(stack)) as server:
        page = open_page(server)
        expect(page.get_by_text("En vivo")).to_be_visible()
    expect(page.get_by_role("heading", level=1)).to_have_text(re.compile(r"^Sin conexión; datos de las \d\d:\d\d$"))
    expect(page.locator(".overall--good")).to_have_count(0)
    expect(card(page)).to_be_visible()
    picture(page, "api-away")
    expect(refresh_button(page)).to_have_attribute("aria-disabled", "true")
    with ApiServer(settings_of(stack), server.port):
        expect(page.get_by_text("En vivo")).to_be_visible()
        expect(page.get_by_text("Sin conexión")).to_have_count(0)
        page.close()


def test_without_postgresql_the_page_says_until_when_its_data_are_known(stack: DagsterStack, open_page: Open) -> None:
    with Gate.before_postgres(stack.env["DATABASE_URL"]) as gate:
        contact = {"contact_name": "Ana Pérez", "contact_whatsapp": "51987654321"}
        with ApiServer(settings_of(stack, database_url=SecretStr(gate.postgres_url), **contact)) as server:
            page = open_page(server)
            expect(page.get_by_text("En vivo")).to_be_visible()
            gate.turn(Way.REFUSED)
            heading = page.get_by_role("heading", level=1)
            away = re.compile(r"^PostgreSQL no responde; datos de las \d\d:\d\d$")
            expect(heading).to_have_text(away)
            expect(refresh_button(page)).to_have_attribute("aria-disabled", "true")
            picture(page, "postgresql-away")
            late = open_page(server)
            expect(late.get_by_text("la página vuelve a preguntar sola cada 5 segundos")).to_be_visible()
            expect(late.get_by_role("link", name="WhatsApp")).to_have_attribute(
                "href", re.compile(r"^https://wa\.me/51987654321\?text=")
            )
            gate.turn(Way.OPEN)
            for back in (page, late):
                expect(back.get_by_text("En vivo")).to_be_visible()
                back.close()


def test_tables_that_were_never_loaded_are_told_as_such(stack: DagsterStack, schema: str, open_page: Open) -> None:
    # Without Dagster, because its failed runs would count as failures of these tables.
    given = {"database_schema": schema, "dagster_graphql_url": "http://127.0.0.1:9/graphql"}
    with ApiServer(settings_of(stack, **given)) as server:
        page = open_page(server)
        expect(page.get_by_role("article").filter(has_text="Sin datos").filter(has_text="Todavía no se ha cargado")).to_have_count(
            5
        )
        expect(page.locator(".badge--good")).to_have_count(0)
        picture(page, "never-loaded")
        page.close()


def test_figures_are_read_by_keyboard_and_by_touch_and_rows_are_downloaded(operation: Operation, open_page: Open) -> None:
    with ApiServer(operation.settings.model_copy(update={"api_tokens": SecretStr("")})) as server:
        page = open_page(server, has_touch=True, viewport={"width": 390, "height": 800})
        figure = page.get_by_role("region", name="Gestiones", exact=True)
        expect(figure).to_contain_text(re.compile(r"^Gestiones0hoy, hasta las \d\d:\d\d"))
        expect(page.get_by_role("region", name="Recupero")).to_contain_text("sin datos todavía")
        expect(figure.get_by_role("img")).to_have_accessible_name(re.compile("^Tendencia de Gestiones 30 días .*: mínimo "))
        days, said = figure.get_by_role("slider", name="Días de Gestiones"), figure.locator(".trend__said")
        days.focus()
        page.keyboard.press("ArrowLeft")
        expect(days).to_have_attribute("aria-valuetext", re.compile(": 17$"))
        expect(said).to_have_text(re.compile(r"^\d+ \w+\.?: 17$"))
        days.tap(position={"x": 3, "y": 10})
        expect(said).to_have_text(re.compile("—; sin cargar$"))
        page.get_by_text("Los 30 días en una tabla").click()
        expect(page.get_by_role("region", name="Cifras de cada día").get_by_role("row").nth(2)).to_contain_text("17")
        page.get_by_text("Descargar filas (CSV)").click()
        page.get_by_role("combobox").select_option("operation_data")
        button = page.get_by_role("button", name="Descargar CSV")
        page.get_by_label("Desde").fill("2020-01-01")
        button.click()
        expect(page.get_by_text("Elija 366 días como máximo.")).to_be_visible()
        page.get_by_label("Desde").fill(str(operation.yesterday))
        with page.expect_download() as download:
            button.click()
        assert download.value.suggested_filename == f"operation_data_{operation.yesterday}_{operation.today}.csv"
        saved = download.value.path().read_text(encoding="utf-8-sig")
        assert saved.splitlines()[1].startswith(f'{operation.yesterday},3,"BOT","\'=a",10,4,6,1,')
        check_accessibility(page)
        page.close()


def test_what_changed_is_told_and_an_administrator_undoes_a_load(deployment: Deployment, open_page: Open) -> None:
    with ApiServer(deployment.settings.model_copy(update={"api_tokens": SecretStr("")})) as server:
        page = open_page(server, viewport={"width": 390, "height": 800})
        lines = page.get_by_role("region", name="Qué cambió en la última carga").get_by_role("listitem")
        expect(lines).to_have_text(
            [
                re.compile(r"^25 nov\.: recupero \+S/\s1,000\.00 en 1 archivo \(Tablero de cobranzas, "),
                re.compile(r"^26 nov\.: recupero \u2212S/\s18\.00 en 2 archivos"),
            ]
        )
        for_engineers(page).click()
        card = engineers(page)
        card.get_by_text("Cambios de Tablero").click()
        loads = card.get_by_role("list").get_by_role("listitem")
        expect(loads.first).to_contain_text("Carga 2")
        expect(loads.first.get_by_role("row").nth(1)).to_contain_text("1 nueva, 1 cambiada")
        loads.first.get_by_role("button", name="Ver filas").click()
        expect(card.get_by_role("region", name="Filas de la carga 2")).to_contain_text("recupero: 30.000000000 → 5.000000000")
        check_accessibility(page)
        assert page.evaluate("document.documentElement.scrollWidth <= innerWidth")
        expect(page.get_by_role("region", name="Costos de BigQuery").get_by_role("cell")).to_have_count(6)
        assert width_with_large_letters(page) <= 390

        # A load below another one that changed its rows is refused, and the answer says why.
        loads.nth(1).get_by_role("button", name="Deshacer").click()
        expect(card.get_by_role("alert")).to_contain_text("La carga no se puede deshacer")
        loads.first.get_by_role("button", name="Deshacer").click()
        expect(loads.first.get_by_text("3 filas de 2 días vuelven a como estaban antes de la carga 2")).to_be_visible()
        assert (D2, "new", 7) in deployment.recovered()
        loads.first.get_by_role("button", name="Deshacer ahora").click()
        expect(loads.first).to_contain_text("deshizo la carga 2")
        assert deployment.recovered() == [(D1, "a", 10), (D1, "b", 20), (D2, "a", 30)]
        expect(page.get_by_role("article", name=TITLE)).to_contain_text("se deshizo una carga")
        expect(lines.first).to_contain_text("recupero +S/")
        page.close()


def test_stale_rows_are_told_as_such(stack: DagsterStack, schema: str, open_page: Open) -> None:
    with ApiServer(settings_of(stack, database_schema=schema)) as server:
        assert server.call("GET", "/api/v1/etl/status").status_code == 200
        with psycopg.connect(stack.env["DATABASE_URL"]) as conn:
            conn.execute(
                f"INSERT INTO {schema}.etl_watermarks (table_name, last_extracted_at, last_partition, last_extraction_status)"
                " VALUES ('dashboard_data', now() - interval '4 days', current_date - 4, 'success')".encode()
            )
        page = open_page(server)
        expect(card(page)).to_contain_text("Vencido")
        expect(page.locator(".overall--warn, .overall--bad")).to_have_count(1)
        picture(page, "stale")
        page.close()


@pytest.mark.parametrize("part", ["App", "Below"])
def test_a_page_whose_code_was_replaced_says_so_and_offers_to_load_it_again(api: ApiServer, browser: Browser, part: str) -> None:
    page = browser.new_page()
    page.route(f"**/assets/{part}-*.js", lambda route: route.fulfill(status=404))
    page.goto(api.url)
    alert = page.get_by_role("alert")
    expect(alert).to_contain_text("No se pudo cargar una parte de esta página. Quizá hay una versión nueva de Pulso.")
    if part == "Below":
        expect(refresh_button(page)).to_have_attribute("aria-disabled", "false")
    check_accessibility(page)
    page.unroute_all()
    page.get_by_role("button", name="Volver a cargar la página").click()
    expect(page.get_by_role("row", name=TITLE)).to_be_visible()
    expect(alert).to_have_count(0)
    page.close()


def test_a_page_whose_first_code_does_not_come_says_what_to_do(api: ApiServer, browser: Browser) -> None:
    page = browser.new_page()
    page.route("**/assets/index-*.js", lambda route: route.fulfill(status=404))
    page.goto(api.url)
    patience = page.get_by_text("Si esto no cambia, vuelva a cargar la página.")
    expect(patience).to_be_hidden()
    page.evaluate("document.getAnimations().forEach(waiting => waiting.finish())")
    expect(patience).to_be_visible()
    page.close()


def test_nothing_moves_while_the_parts_of_the_page_arrive(api: ApiServer, browser: Browser) -> None:
    page = browser.new_page(viewport={"width": 1280, "height": 1200}, reduced_motion="reduce")
    page.add_init_script(
        "moved = 0; new PerformanceObserver(seen => seen.getEntries().forEach(shift => moved += shift.value))"
        ".observe({type: 'layout-shift', buffered: true})"
    )
    page.goto(api.url)
    expect(page.get_by_text("En vivo")).to_be_visible()
    expect(page.get_by_text("Costos estimados por Pulso")).to_be_visible()
    # Two frames: the browser has drawn what is there, and has told of it.
    page.evaluate("new Promise(drawn => requestAnimationFrame(() => requestAnimationFrame(drawn)))")
    # The word for the connection grows.
    assert page.evaluate("moved") < 0.005
    page.close()
