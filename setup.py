import re
from configparser import ConfigParser
from pathlib import Path

from setuptools import find_packages, setup

ini = ConfigParser(delimiters=["="])
ini.read("settings.ini", encoding="utf8")
cfg = ini["DEFAULT"]
extras = {key.removesuffix("_requirements"): cfg[key].split() for key in cfg if key.endswith("_requirements")}
raw = f"{cfg['git_url'].replace('github.com', 'raw.githubusercontent.com')}/{cfg['branch']}/"
blob = f"{cfg['git_url']}/blob/{cfg['branch']}/"


def readme_for_pypi() -> str:
    "README.md with absolute addresses: pictures and links work outside the repository, too."
    text = Path("README.md").read_text(encoding="utf8")
    text = re.sub(r"(!\[[^\]]*\]\()(?!https?:)", rf"\1{raw}", text)
    return re.sub(r"\]\((?!https?:|#)", rf"]({blob}", text)


setup(
    name=cfg["lib_name"],
    version=cfg["version"],
    description=cfg["description"],
    keywords=cfg["keywords"].split(),
    author=cfg["author"],
    author_email=cfg["author_email"],
    url=cfg["git_url"],
    project_urls={
        "Source": cfg["git_url"],
        "Issues": f"{cfg['git_url']}/issues",
        "Changelog": f"{blob}CHANGELOG.md",
    },
    license="Apache-2.0",
    license_files=["LICENSE"],
    classifiers=[
        "Development Status :: 4 - Beta",
        "Intended Audience :: Education",
        "Intended Audience :: Science/Research",
        "Natural Language :: English",
        "Natural Language :: Korean",
        "Operating System :: OS Independent",
        "Programming Language :: Python :: 3",
        "Programming Language :: Python :: 3.10",
        "Programming Language :: Python :: 3.11",
        "Programming Language :: Python :: 3.12",
        "Programming Language :: Python :: 3.13",
        "Topic :: Scientific/Engineering :: Artificial Intelligence",
        "Topic :: Text Processing :: Linguistic",
        "Typing :: Typed",
    ],
    python_requires=">=" + cfg["min_python"],
    packages=find_packages(include=["bertlab", "bertlab.*"]),
    package_data={"bertlab": ["py.typed"]},
    install_requires=cfg["requirements"].split(),
    extras_require=extras,
    entry_points={"console_scripts": cfg["console_scripts"].split()},
    long_description=readme_for_pypi(),
    long_description_content_type="text/markdown",
    zip_safe=False,
)
