"""The page's own script: draws the charts, keeps the theme, lets a reader single out one contender."""

from __future__ import annotations

SCRIPT = """
(function () {
  const root = document.documentElement, views = [];
  const toggle = document.getElementById('theme');
  const system = matchMedia('(prefers-color-scheme: dark)');
  const asked = new URLSearchParams(location.search).get('theme');
  const remembered = () => { try { return localStorage.getItem('formwright-theme'); } catch (e) { return null; } };
  const remember = value => { try { localStorage.setItem('formwright-theme', value); } catch (e) { return; } };
  function theme(value) {
    if (value === 'dark' || value === 'light') root.dataset.theme = value;
    const dark = root.dataset.theme ? root.dataset.theme === 'dark' : system.matches;
    toggle.textContent = dark ? 'Light' : 'Dark';
    toggle.setAttribute('aria-label', 'Use the ' + (dark ? 'light' : 'dark') + ' theme');
    return dark;
  }
  theme(asked || remembered());
  toggle.onclick = () => { const next = theme() ? 'light' : 'dark'; theme(next); remember(next); };
  system.onchange = () => theme();

  const copy = document.getElementById('copy');
  copy.onclick = () => navigator.clipboard.writeText(document.getElementById('command').textContent)
    .then(() => { copy.textContent = 'Copied'; })
    .catch(() => getSelection().selectAllChildren(document.getElementById('command')));

  let pinned = '';
  const chips = [...document.querySelectorAll('.chip')];
  const focus = name => views.forEach(view => view.signal('focus', name).runAsync());
  chips.forEach(chip => {
    const name = chip.dataset.name;
    chip.onmouseenter = () => focus(name);
    chip.onmouseleave = () => focus(pinned);
    chip.onclick = () => {
      pinned = pinned === name ? '' : name;
      chips.forEach(c => c.setAttribute('aria-pressed', c.dataset.name === pinned));
      focus(pinned);
    };
  });

  const specs = JSON.parse(document.getElementById('charts').textContent);
  const tooltip = { theme: 'custom', offsetX: 14, offsetY: 14 };
  Object.entries(specs).forEach(([id, spec]) => {
    const place = document.getElementById(id);
    vegaEmbed(place, spec, { mode: 'vega', renderer: 'svg', actions: false, tooltip })
      .then(result => { if (spec.signals.some(s => s.name === 'focus')) views.push(result.view); })
      .catch(error => { place.textContent = 'This chart could not be drawn: ' + error.message; });
  });
})();
"""
