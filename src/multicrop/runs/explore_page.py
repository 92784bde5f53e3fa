"""The page of `multicrop explore`: photo, controls, change of the answer and explanation; served to this machine alone."""

import socket
import warnings
import webbrowser
from collections.abc import Iterator
from contextlib import contextmanager

import uvicorn
from fastapi import FastAPI
from nicegui import app as nicegui_app
from nicegui import events, run, ui
from starlette.middleware.trustedhost import TrustedHostMiddleware

from multicrop.runs.explore import Controls, Explorer, Photo
from multicrop.show.explain.change import change_table, headline
from multicrop.show.explain.page import page as explanation_page
from multicrop.show.terminal import console

HOST = "127.0.0.1"
MOST_CROPS, LEAST_SIZE = 64, 0.05
DEBOUNCE = 400  # milliseconds after the last key


class Page:
    """One browser tab.

    A change of a control asks for an answer. While one is computed, further changes are gathered into the next.

    Args:
        explorer: What answers.
        photo: The photo shown first; None: one is asked for.
        title: What is explored.
    """

    def __init__(self, explorer: Explorer, photo: Photo | None, title: str) -> None:
        self.explorer, self.photo = explorer, photo
        self.prompts: dict[str, list[str]] = {}  # of edited classes
        self.predicted: str | None = None
        self.wanted, self.busy = 0, False
        with ui.header().classes("items-baseline gap-4 py-2 px-6").style("background: #3b3054"):
            ui.label("multicrop explore").classes("text-lg font-semibold")
            ui.label(title).classes("text-sm opacity-80")
        with ui.row().classes("w-full no-wrap items-start gap-6 p-2"):
            with ui.column().classes("w-80 shrink-0 gap-5"):
                self._lay_out_photo()
                self._lay_out_crops()
                self._lay_out_prompts()
                ui.button("As configured", icon="undo", on_click=self.reset).props("outline no-caps").classes("w-full")
            with ui.column().classes("grow min-w-0 gap-3"):
                self._lay_out_answer()

    def _lay_out_photo(self) -> None:
        self.upload = ui.upload(label="Drop a photo here, or press +", auto_upload=True, on_upload=self.load)
        self.upload.props("accept=image/* flat bordered").classes("w-full")

    def _lay_out_crops(self) -> None:
        configured, changed = self.explorer.configured, self.refresh
        self.n_crops = self.size = None
        if configured.n_crops is not None:
            with _control("Number of crops") as shown:
                self.n_crops = ui.slider(min=1, max=max(MOST_CROPS, configured.n_crops), value=configured.n_crops, on_change=changed)
                self.n_crops.props('aria-label="Number of crops"')
                shown.bind_text_from(self.n_crops, "value", lambda value: f"{value:.0f}")
        if configured.size is not None:
            with _control("Size of crops") as shown:
                value = {"min": configured.size[0], "max": configured.size[1]}
                self.size = ui.range(min=LEAST_SIZE, max=1, step=LEAST_SIZE, value=value, on_change=changed)
                shown.bind_text_from(self.size, "value", lambda value: f"{value['min']:.2f} to {value['max']:.2f} of the image")
        with _control("Fusion weight") as shown:
            self.weight = ui.slider(min=0, max=1, step=0.05, value=configured.fusion_weight, on_change=changed)
            self.weight.props('aria-label="Fusion weight"')
            shown.bind_text_from(self.weight, "value", lambda value: f"{value:.2f}  (0: whole image, 1: crops)")

    def _lay_out_prompts(self) -> None:
        names = self.explorer.class_names
        self.class_name = ui.select(names, value=names[0], label="Class", with_input=True, on_change=self._show_prompts)
        self.text = ui.textarea("Prompts, one per line, label prompt first", on_change=self.edit)
        self.text.props(f"outlined autogrow debounce={DEBOUNCE}")
        for element in (self.class_name, self.text):
            element.classes("w-full")
        self._show_prompts()

    def _lay_out_answer(self) -> None:
        self.headline = ui.label("Drop a photo on the left.").classes("text-xl font-semibold")
        self.problem = ui.label().classes("text-negative")
        self.change = ui.html(sanitize=False).classes("w-full max-w-5xl text-sm")
        self.explanation = ui.element("iframe").props('sandbox="allow-scripts" title="explanation"').classes("w-full border-0")
        self.explanation.style("height: 72vh").set_visibility(False)

    @property
    def controls(self) -> Controls:
        """What the controls say."""
        n_crops = None if self.n_crops is None else int(self.n_crops.value or 1)
        size = None if self.size is None or self.size.value is None else (self.size.value["min"], self.size.value["max"])
        return Controls(n_crops, size, float(self.weight.value or 0.0), dict(self.prompts))

    async def load(self, event: events.UploadEventArguments) -> None:
        """Show another photo."""
        data = await event.file.read()
        self.upload.reset()
        try:
            self.photo = await run.io_bound(self.explorer.photo, event.file.name, data)
        except ValueError as error:
            self.problem.text = str(error)
            return
        await self.refresh()
        if self.predicted is not None:
            self.class_name.value = self.predicted

    async def edit(self) -> None:
        """Take the prompts of the class as they are written."""
        name: str = str(self.class_name.value)
        lines = [line.strip() for line in (self.text.value or "").splitlines()]
        written = [line for line in lines if line]
        if written != [str(prompt) for prompt in self._prompts_of(name)]:
            self.prompts[name] = written
            await self.refresh()

    async def reset(self) -> None:
        """Set the controls as configured."""
        configured = self.explorer.configured
        self.prompts = {}
        if self.n_crops is not None:
            self.n_crops.value = configured.n_crops
        if self.size is not None and configured.size is not None:
            self.size.value = {"min": configured.size[0], "max": configured.size[1]}
        self.weight.value = configured.fusion_weight
        self._show_prompts()
        await self.refresh()

    async def refresh(self) -> None:
        """Answer with the controls as they are now."""
        self.wanted += 1
        if self.busy or self.photo is None:
            return
        self.busy, answered = True, 0
        try:
            while answered != self.wanted:
                answered = self.wanted
                await self._answer(self.photo)
        finally:
            self.busy = False

    async def _answer(self, photo: Photo) -> None:
        try:
            answer = await run.io_bound(self.explorer.answer, photo, self.controls)
        except ValueError as error:
            self.problem.text = str(error)
            return
        if answer is None:  # the server stops
            return
        names, self.predicted = self.explorer.class_names, answer.explanation.predicted.name
        self.problem.text, self.headline.text = "", headline(names, answer.before, answer.now)
        self.change.content = change_table(names, answer.before, answer.now)
        self.explanation.props["srcdoc"] = explanation_page(answer.explanation)
        self.explanation.set_visibility(True)

    def _prompts_of(self, name: str) -> list[str]:
        return self.prompts.get(name, self.explorer.prompts(name))

    def _show_prompts(self) -> None:
        self.text.value = "\n".join(self._prompts_of(str(self.class_name.value)))


@contextmanager
def _control(name: str) -> Iterator[ui.label]:
    """A control below its name and its value."""
    with ui.column().classes("w-full gap-0"):
        with ui.row().classes("w-full justify-between text-sm"):
            ui.label(name).classes("font-medium")
            shown = ui.label().classes("opacity-70")
        yield shown


def listening(port: int) -> socket.socket:
    """A socket that listens to this machine alone; port 0 is any that is free."""
    made = socket.socket()
    made.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
    try:
        made.bind((HOST, port))
    except OSError as error:
        made.close()
        raise ValueError(f"port {port} of {HOST} cannot be used ({error.strerror}); pass another with --port") from error
    return made


def server_of(explorer: Explorer, photo: Photo | None, title: str) -> uvicorn.Server:
    """The server of the page. It answers requests for this machine's own names only, so that no other site reads the page."""
    warnings.filterwarnings("ignore", message=".*reduce_op", category=FutureWarning)  # NiceGUI looks at every object of the process
    app = FastAPI()
    app.add_middleware(TrustedHostMiddleware, allowed_hosts=[HOST, "localhost"])
    root = lambda: Page(explorer, photo, title)  # noqa: E731
    ui.run_with(app, root=root, title="multicrop explore", dark=None, show_welcome_message=False)
    return uvicorn.Server(uvicorn.Config(app, log_level="warning"))


def serve(explorer: Explorer, photo: Photo | None, title: str, *, port: int, open_browser: bool) -> None:
    """Serve the page until it is interrupted."""
    with listening(port) as address:
        url = f"http://{HOST}:{address.getsockname()[1]}"
        console.print(f"multicrop explore: {url} (stop with Ctrl-C)", soft_wrap=True)
        if open_browser:
            nicegui_app.on_startup(lambda: webbrowser.open(url))
        server_of(explorer, photo, title).run(sockets=[address])
