(text) => {
  if (!text) return;
  const link = document.createElement('a');
  const kind = 'FORM' === 'html' ? 'text/html' : 'application/json';
  link.href = URL.createObjectURL(new Blob([text], {type: kind + ';charset=utf-8'}));
  link.download = 'conversation.FORM';
  link.click();
  setTimeout(() => URL.revokeObjectURL(link.href), 10000);
}
