"""A slow network, and what the page says of a song meanwhile."""

from playwright.sync_api import Page


def throttle(tab: Page, down_bytes_per_s: int = -1, up_bytes_per_s: int = -1) -> None:
    network = {
        "offline": False,
        "latency": 0,
        "downloadThroughput": down_bytes_per_s,
        "uploadThroughput": up_bytes_per_s,
    }
    tab.context.new_cdp_session(tab).send("Network.emulateNetworkConditions", network)


def note_statuses(tab: Page) -> None:
    """Note from now on what is said of the first song."""
    tab.evaluate("""() => {
      window.seen = [];
      const look = () => seen.push(document.querySelector(".status")?.textContent ?? "");
      new MutationObserver(look).observe(document.body, { subtree: true, childList: true, characterData: true });
    }""")


def statuses_noted(tab: Page) -> list[str]:
    return list(dict.fromkeys(tab.evaluate("seen")))
