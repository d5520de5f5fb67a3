// What a visitor who sees badly, uses a screen reader or a thumb would miss. Returns a list of problems, as text.
({phone}) => {
  const canvas = document.createElement('canvas').getContext('2d', {willReadFrequently: true});
  const rgba = (text) => {
    canvas.clearRect(0, 0, 1, 1);
    canvas.fillStyle = text;
    canvas.fillRect(0, 0, 1, 1);
    const [r, g, b, a] = canvas.getImageData(0, 0, 1, 1).data;
    return [r, g, b, a / 255];
  };
  const over = (top, below) => top.slice(0, 3).map((v, k) => v * top[3] + below[k] * (1 - top[3]));
  const luminance = (rgb) => {
    const [r, g, b] = rgb.map((v) => v / 255).map((v) => (v <= 0.03928 ? v / 12.92 : ((v + 0.055) / 1.055) ** 2.4));
    return 0.2126 * r + 0.7152 * g + 0.0722 * b;
  };
  const ground = (element) => {
    const layers = [];
    for (let e = element; e; e = e.parentElement) layers.push(rgba(getComputedStyle(e).backgroundColor));
    return layers.reverse().reduce((below, top) => over(top, below), [255, 255, 255]);
  };
  const seen = (e) => {
    const box = e.getBoundingClientRect();
    const style = getComputedStyle(e);
    return box.width > 1 && box.height > 1 && style.visibility !== 'hidden' && +style.opacity > 0.1;
  };
  const where = (e) => (e.closest('[id]') || {}).id + ' <' + e.tagName.toLowerCase() + ' ' + e.className + '>';
  const found = [];
  const judge = (element, color, text) => {
    if (element.closest(':disabled, [aria-hidden=true]')) return;
    const style = getComputedStyle(element);
    const below = ground(element);
    const [a, b] = [luminance(over(rgba(color), below)), luminance(below)].sort((x, y) => y - x);
    const size = parseFloat(style.fontSize);
    const least = size >= 24 || (size >= 18.66 && +style.fontWeight >= 700) ? 3 : 4.5;
    const ratio = (a + 0.05) / (b + 0.05);
    if (ratio < least) found.push(`contrast ${ratio.toFixed(2)} of ${where(element)} ${text.trim().slice(0, 40)}`);
  };
  const texts = document.createTreeWalker(document.body, NodeFilter.SHOW_TEXT);
  while (texts.nextNode()) {
    const element = texts.currentNode.parentElement;
    if (/^(SCRIPT|STYLE|NOSCRIPT|OPTION)$/.test(element.tagName) || !texts.currentNode.data.trim()) continue;
    if (seen(element)) judge(element, getComputedStyle(element).color, texts.currentNode.data);
  }
  for (const e of document.querySelectorAll('input, textarea')) {
    if (e.placeholder && seen(e)) judge(e, getComputedStyle(e, '::placeholder').color, e.placeholder);
  }
  for (const e of document.querySelectorAll('button, input, textarea, select, [role=button], a[href]')) {
    if (!seen(e) || e.type === 'file' || e.type === 'hidden') continue;
    const inside = [...e.querySelectorAll('[aria-label], [alt]')].map((i) => i.ariaLabel || i.alt).join('');
    const other = document.getElementById(e.getAttribute('aria-labelledby'))?.textContent;
    const names = [(e.labels || [])[0]?.textContent, e.textContent, e.title, e.ariaLabel, other, inside];
    if (!names.some((name) => (name || '').trim())) found.push(`no label: ${where(e)}`);
    const target = (/^(checkbox|radio)$/.test(e.type) && e.labels[0]) || e;
    const box = target.getBoundingClientRect();
    if (phone && (box.height < 43.5 || box.width < 43.5) && e.type !== 'range') {
      found.push(`touch target ${box.width.toFixed(0)} x ${box.height.toFixed(0)}: ${where(e)}`);
    }
  }
  if (document.documentElement.scrollWidth > innerWidth) found.push(`wider than the screen: ${document.documentElement.scrollWidth}`);
  return [...new Set(found)];
}
