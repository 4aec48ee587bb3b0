"""Sphinx's settings for the site; `docs/build.py` prepares the sources and calls it."""

from configparser import ConfigParser
from pathlib import Path

ini = ConfigParser(delimiters=["="])
ini.read(Path(__file__).resolve().parent.parent / "settings.ini", encoding="utf8")

project = ini["DEFAULT"]["lib_name"]
author = ini["DEFAULT"]["author"]
copyright = ini["DEFAULT"]["copyright"]
release = ini["DEFAULT"]["version"]

extensions = ["myst_nb", "sphinx-mathjax-offline"]  # MathJax lies in the site: equations need no network
root_doc = "index"
nb_execution_mode = "off"  # the outputs in the notebooks are the ones to show
nb_merge_streams = True
nb_render_markdown_format = "gfm"  # tables that a cell prints
myst_enable_extensions = ["dollarmath", "amsmath", "attrs_inline", "colon_fence"]
myst_heading_anchors = 3
toc_object_entries_show_parents = "hide"
suppress_warnings = ["mystnb.unknown_mime_type"]  # widgets, which stand beside their static picture

html_theme = "sphinx_book_theme"
html_title = "bertlab"
html_static_path = ["../_docs/src/_static"]  # ours, and the font that build.py adds
html_css_files = ["bertlab.css", "hangul.css"]
html_theme_options = {
    "repository_url": ini["DEFAULT"]["git_url"],
    "use_repository_button": True,
    "use_download_button": True,
    "home_page_in_toc": True,
    "navbar_persistent": [],  # the sidebar has the search already
    "show_navbar_depth": 1,
    "show_toc_level": 2,
}
html_last_updated_fmt = None
