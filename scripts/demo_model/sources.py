"""What the demo model reads: Debian (bookworm, section main) packages and how to take text out of them.

One row per package: name, format of its documents, which files to take, which to leave, licence of
the text (as its debian/copyright states), and the title by which the chat examples name it.
"""

from dataclasses import dataclass


@dataclass(frozen=True)
class Source:
    package: str
    form: str  # html | man | pod | mallard | dict
    take: str  # regular expression on the path inside the package
    licence: str
    title: str = ""
    leave: str = r"$^"


HTML = r"\.html$"
MAN = r"/usr/share/man/man[1578]/"

SOURCES = [
    # Debian's own manuals
    Source("debian-policy", "html", r"policy\.html/.*\.html$", "GPL-2.0-or-later", "the Debian Policy Manual"),
    Source("developers-reference", "html", HTML, "GPL-2.0-or-later", "the Debian Developer's Reference",
           r"developers-reference/developers-reference\.html|genindex|search"),
    Source("debian-reference-en", "html", HTML, "GPL-2.0-or-later", "the Debian Reference"),
    Source("maint-guide", "html", r"\.en\.html$", "GPL-2.0-or-later", "the New Maintainers' Guide"),
    Source("debian-faq", "html", r"\.en\.html$", "free verbatim-and-modified-copies notice", "the Debian FAQ"),
    Source("debian-handbook", "html", r"/html/en-US/.*\.html$", "GPL-2.0-or-later OR CC-BY-SA-3.0",
           "the Debian Administrator's Handbook"),
    Source("debmake-doc", "html", r"\.en\.html$", "MIT", "the Guide for Debian Maintainers"),
    Source("harden-doc", "html", r"/html/en-US/.*\.html$", "GPL-2.0-or-later", "the Securing Debian Manual"),
    Source("apt-doc", "html", r"(guide|offline)\.html/.*\.html$|\.en\.html/", "GPL-2.0-or-later", "the APT guide"),
    Source("aptitude-doc-en", "html", HTML, "GPL-2.0-or-later", "the aptitude manual"),
    Source("installation-guide-amd64", "html", r"/en/.*\.html$", "GPL-2.0-only", "the Debian installation guide"),
    Source("debian-kernel-handbook", "html", HTML, "GPL-2.0-or-later", "the Debian Kernel Handbook"),
    # systems
    Source("linux-doc-6.1", "html", r"/html/.*\.html$", "GPL-2.0-only", "the Linux kernel documentation",
           r"/(translations|_sources)/|maintainers\.html|abi-|genindex|credits"),
    Source("gnome-user-docs", "mallard", r"/usr/share/help/C/.*\.page$", "CC-BY-SA-3.0", "the GNOME user help"),
    Source("gimp-help-en", "html", r"/help/en/.*\.html$", "GFDL-1.2-or-later (no invariant sections)", "the GIMP manual"),
    Source("libreoffice-help-en-us", "html", r"/en-US/text/.*\.html$", "MPL-2.0", "the LibreOffice help"),
    # servers and databases
    Source("postgresql-doc-15", "html", HTML, "PostgreSQL", "the PostgreSQL documentation", r"bookindex|biblio|release-"),
    Source("sqlite3-doc", "html", HTML, "public domain", "the SQLite documentation", r"/(matrix|changes)|releaselog"),
    Source("postfix-doc", "html", HTML, "IPL-1.0 OR EPL-2.0", "the Postfix documentation"),
    Source("exim4-doc-html", "html", HTML, "GPL-2.0-or-later", "the Exim specification", r"index_"),
    Source("apache2-doc", "html", r"/manual/en/.*\.html$", "Apache-2.0", "the Apache HTTP Server documentation"),
    Source("bind9-doc", "html", HTML, "MPL-2.0", "the BIND 9 manual", r"genindex|notes"),
    Source("rsyslog-doc", "html", r"/html/.*\.html$", "GPL-3.0-or-later AND Apache-2.0 AND GFDL-1.2-or-later (no invariant sections)", "the rsyslog documentation"),
    Source("varnish-doc", "html", r"/html/.*\.html$", "BSD-2-Clause", "the Varnish documentation"),
    Source("haproxy-doc", "html", HTML, "GPL-2.0-or-later", "the HAProxy manual"),
    # languages and tools
    Source("python3.11-doc", "html", HTML, "PSF-2.0", "the Python documentation", r"genindex|changelog|py-modindex"),
    Source("python-django-doc", "html", HTML, "BSD-3-Clause", "the Django documentation", r"genindex|_modules|releases/"),
    Source("sphinx-doc", "html", r"/html/.*\.html$", "BSD-2-Clause", "the Sphinx documentation", r"_modules|genindex"),
    Source("python-scipy-doc", "html", r"/html/.*\.html$", "BSD-3-Clause", "the SciPy documentation", r"_modules|genindex"),
    Source("python-pandas-doc", "html", r"/html/.*\.html$", "BSD-3-Clause", "the pandas documentation", r"_modules|genindex"),
    Source("rust-doc", "html", r"/html/(book|reference|nomicon|embedded-book|rust-by-example|rustc|rustdoc|edition-guide|std)/.*\.html$",
           "MIT OR Apache-2.0", "the Rust documentation", r"print\.html|/all\.html|/std/(arch|simd)/|/book/(first|second|2018)-edition/"),
    Source("erlang-doc", "html", r"/doc/.*\.html$", "Apache-2.0", "the Erlang/OTP documentation", r"release_notes|notes\.html"),
    Source("llvm-14-doc", "html", HTML, "Apache-2.0 WITH LLVM-exception", "the LLVM documentation", r"genindex|/AMDGPU/"),
    Source("clang-14-doc", "html", HTML, "Apache-2.0 WITH LLVM-exception", "the Clang documentation", r"genindex"),
    Source("perl-doc", "pod", r"\.pod$", "GPL-1.0-or-later OR Artistic-1.0-Perl", "the Perl documentation", r"perl[0-9]+delta|perlhist"),
    Source("git-doc", "html", HTML, "GPL-2.0-only", "the Git documentation", r"RelNotes"),
    # more libraries and services
    Source("qtbase5-doc-html", "html", HTML, "GFDL-1.3 (no invariant sections)", "the Qt documentation", r"-members\.html|-obsolete|examples-manifest"),
    Source("libboost1.74-doc", "html", r"/doc/html/.*\.html$|/libs/.*\.html?$", "BSL-1.0", "the Boost documentation"),
    Source("python-sklearn-doc", "html", r"/html/.*\.html$", "BSD-3-Clause", "the scikit-learn documentation", r"_modules|genindex|whats_new|auto_examples"),
    Source("python-astropy-doc", "html", r"/html/.*\.html$", "BSD-3-Clause", "the Astropy documentation", r"_modules|genindex|changelog"),
    Source("python-sqlalchemy-doc", "html", r"/html/.*\.html$", "MIT", "the SQLAlchemy documentation", r"_modules|genindex|changelog_"),
    Source("twisted-doc", "html", r"/(core|web|mail|names|conch|words)/.*\.html$", "MIT", "the Twisted documentation"),
    Source("nodejs-doc", "html", r"/api/.*\.html$", "MIT", "the Node.js documentation", r"/all\.html"),
    Source("cmake-doc", "html", HTML, "BSD-3-Clause", "the CMake documentation", r"genindex|release/"),
    Source("libgtk-4-doc", "html", HTML, "LGPL-2.1-or-later", "the GTK documentation"),
    Source("libglib2.0-doc", "html", HTML, "LGPL-2.1-or-later", "the GLib documentation", r"index-|api-index"),
    Source("nova-doc", "html", r"/html/.*\.html$", "Apache-2.0", "the Nova documentation", r"_modules|genindex|/api/|configuration/(sample|config)"),
    Source("neutron-doc", "html", r"/html/.*\.html$", "Apache-2.0", "the Neutron documentation", r"_modules|genindex|/api/|configuration/"),
    Source("cinder-doc", "html", r"/html/.*\.html$", "Apache-2.0", "the Cinder documentation", r"_modules|genindex|/api/|configuration/tables"),
    Source("keystone-doc", "html", r"/html/.*\.html$", "Apache-2.0", "the Keystone documentation", r"_modules|genindex|/api/"),
    Source("ironic-doc", "html", r"/html/.*\.html$", "Apache-2.0", "the Ironic documentation", r"_modules|genindex|/api/"),
    Source("octavia-doc", "html", r"/html/.*\.html$", "Apache-2.0", "the Octavia documentation", r"_modules|genindex|/modules/"),
    Source("dpdk-doc", "html", r"/guides/.*\.html$", "BSD-3-Clause", "the DPDK guides", r"genindex|rel_notes"),
    Source("krb5-doc", "html", HTML, "MIT", "the Kerberos documentation", r"genindex"),
    Source("libvirt-doc", "html", HTML, "LGPL-2.1-or-later", "the libvirt documentation", r"/news"),
    Source("buildbot-doc", "html", r"/html/.*\.html$|/manual/.*\.html$", "GPL-2.0-only", "the Buildbot manual", r"relnotes|_modules|genindex"),
    Source("openjdk-17-doc", "html", r"/api/java\.(base|logging|net\.http|sql|xml)/.*\.html$", "GPL-2.0-only WITH Classpath-exception-2.0",
           "the Java API documentation", r"class-use|package-tree|package-use"),
    # man pages
    Source("perl-doc", "man", r"/usr/share/man/man3/", "GPL-1.0-or-later OR Artistic-1.0-Perl"),
    Source("libssl-doc", "man", r"/usr/share/man/man[37]/", "Apache-2.0"),
    Source("tcl8.6-doc", "man", r"/usr/share/man/man[3n]/", "TCL"),
    Source("tk8.6-doc", "man", r"/usr/share/man/man[3n]/", "TCL"),
    Source("manpages", "man", MAN, "GPL-2.0-or-later AND free verbatim licences"),
    Source("manpages-dev", "man", r"/usr/share/man/man[23]/", "GPL-2.0-or-later AND free verbatim licences"),
    Source("coreutils", "man", MAN, "GPL-3.0-or-later"),
    Source("util-linux", "man", MAN, "GPL-2.0-or-later"),
    Source("systemd", "man", MAN, "LGPL-2.1-or-later"),
    Source("dpkg", "man", MAN, "GPL-2.0-or-later"),
    Source("dpkg-dev", "man", MAN, "GPL-2.0-or-later"),
    Source("apt", "man", MAN, "GPL-2.0-or-later"),
    Source("devscripts", "man", MAN, "GPL-2.0-or-later"),
    Source("debhelper", "man", MAN, "GPL-2.0-or-later"),
    Source("procps", "man", MAN, "GPL-2.0-or-later"),
    Source("findutils", "man", MAN, "GPL-3.0-or-later"),
    Source("tar", "man", MAN, "GPL-3.0-or-later"),
    Source("gzip", "man", MAN, "GPL-3.0-or-later"),
    Source("grep", "man", MAN, "GPL-3.0-or-later"),
    Source("sed", "man", MAN, "GPL-3.0-or-later"),
    Source("iproute2", "man", MAN, "GPL-2.0-or-later"),
    Source("passwd", "man", MAN, "BSD-3-Clause"),
    Source("mount", "man", MAN, "GPL-2.0-or-later"),
    Source("e2fsprogs", "man", MAN, "GPL-2.0-only"),
    Source("curl", "man", MAN, "curl"),
    Source("rsync", "man", MAN, "GPL-3.0-or-later"),
    Source("less", "man", MAN, "GPL-3.0-or-later OR BSD-2-Clause"),
    # dictionaries of computing
    Source("dict-foldoc", "dict", r"foldoc\.dict\.dz$", "GFDL-1.1-or-later (no invariant sections)"),
    Source("dict-jargon", "dict", r"jargon\.dict\.dz$", "public domain"),
]

# Descriptions of Debian's packages: the archive's Translation-en index, each under its package's free licence.
PACKAGE_DESCRIPTIONS = "debian package descriptions"
