"""The style sheet of the page: light and dark, wide and narrow, on paper."""

from typing import Final

from ekd_nemo.report import style

_INK, _MUTED, _GRID = (f"var({style.variable(c)})" for c in (style.INK, style.MUTED, style.GRID))

CSS: Final = f"""
:root{{color-scheme:light dark;--page:#fff;--link:#0b5fa5;{style.theme_css(dark=False)}}}
@media (prefers-color-scheme:dark){{:root{{--page:#14171b;--link:#7cc0f5;{style.theme_css(dark=True)}}}}}
@media print{{:root{{color-scheme:light;--page:#fff;{style.theme_css(dark=False)}}}nav{{display:none}}}}
*{{box-sizing:border-box}}
html{{scroll-padding-top:1rem}}
body{{font:15px/1.5 system-ui,"DejaVu Sans",sans-serif;color:{_INK};background:var(--page)}}
body{{margin:0 auto;max-width:90rem;padding:1rem}}
a{{color:var(--link)}}
h1{{font-size:1.5rem;line-height:1.25;margin:.4rem 0}}
h2{{font-size:1.25rem;margin:2.6rem 0 .4rem;padding-bottom:.2rem;border-bottom:1px solid {_GRID}}}
h3{{font-size:1rem;margin:1.8rem 0 .3rem}}
.lead,.caption,figcaption{{color:{_MUTED};font-size:.85rem;margin:.3rem 0 .6rem;max-width:60rem}}
.absent{{color:{_MUTED}}}
p.absent{{border:1px dashed {_MUTED};border-radius:6px;padding:.8rem 1rem}}
.scroll{{overflow-x:auto}}
figure{{margin:0;max-width:58rem}}
figure svg{{display:block;width:100%;min-width:38rem;height:auto}}
table{{border-collapse:collapse;font-size:.78rem;font-variant-numeric:tabular-nums}}
th,td{{padding:.28rem .42rem;text-align:right;vertical-align:top;white-space:pre;font-weight:400}}
thead th{{font-weight:600;border-bottom:2px solid {_MUTED};vertical-align:bottom}}
th:first-child,td:first-child{{text-align:left;padding-left:0}}
tbody tr{{border-bottom:1px solid {_GRID}}}
tbody+tbody{{border-top:2px solid {_MUTED}}}
tbody th:first-child{{position:sticky;left:0;background:var(--page);padding-right:.8rem}}
table.told th,table.told td{{text-align:left;white-space:normal;overflow-wrap:anywhere}}
table.told td:first-child{{min-width:12rem;overflow-wrap:normal}}
table.told td:nth-child(2){{min-width:14rem}}
details{{margin:.5rem 0}}summary{{cursor:pointer;color:var(--link);font-size:.85rem}}
nav ul{{list-style:none;margin:0;padding:0}}
nav ul ul{{padding-left:.9rem}}
nav{{font-size:.82rem}}nav a{{text-decoration:none;display:inline-block;padding:.1rem 0}}
nav a:hover{{text-decoration:underline}}
@media (min-width:70rem){{
body{{display:grid;grid-template-columns:12rem minmax(0,1fr);gap:1.4rem}}
nav{{position:sticky;top:1rem;align-self:start;max-height:calc(100vh - 2rem);overflow-y:auto}}
nav{{border-right:1px solid {_GRID}}}
}}
@media (max-width:69.99rem){{
nav>ul{{display:flex;flex-wrap:wrap;gap:.2rem 1rem}}nav ul ul{{display:none}}
}}
"""
