"""What a release says of itself: its notes, and the links of its page, which lead into the repository."""

from __future__ import annotations

import re

__all__ = ["changes", "with_absolute_links", "with_urls"]

LINK = re.compile(r"\]\((?!https?://|#|mailto:)([^)\s]+)\)")
IMAGE = re.compile(r"!\[[^\]]*\]\((?!https?://)[^)\s]+\)")


def changes(changelog: str, version: str) -> str:
    """Return the changelog's section of a version; an empty text if it has none that says anything."""
    sections = re.split(r"^## ", changelog, flags=re.M)[1:]
    found = [body for head, _, body in (section.partition("\n") for section in sections) if head.split()[0] == version]
    return found[0].strip() + "\n" if found and found[0].strip() else ""


def with_absolute_links(page: str, repository: str, tag: str) -> str:
    """Return a page whose links into the repository lead to it from anywhere."""
    pictures = IMAGE.sub(lambda found: LINK.sub(rf"]({repository}/raw/{tag}/\1)", found.group()), page)
    return LINK.sub(rf"]({repository}/blob/{tag}/\1)", pictures)


def with_urls(project: str, repository: str) -> str:
    """Return ``pyproject.toml`` with the addresses of a repository."""
    urls = {
        "Homepage": repository,
        "Documentation": f"{repository}#readme",
        "Changelog": f"{repository}/blob/main/CHANGELOG.md",
        "Issues": f"{repository}/issues",
    }
    table = "\n".join(["[project.urls]", *(f'{name} = "{url}"' for name, url in urls.items())])
    head, mark, rest = project.partition("[project.scripts]")
    if not mark or "[project.urls]" in project:
        raise ValueError("pyproject.toml should have [project.scripts], and no [project.urls] of its own")
    return f"{head}{table}\n\n{mark}{rest}"
