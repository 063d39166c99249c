// Starts Swagger UI. The page's policy allows no inline scripts.

(() => {
  const page = document.getElementById("swagger-ui");
  const { openapi, server } = page.dataset;
  const LISTEN = 5000;

  // The page calls its own origin. The absolute URL in the document can be a different one if the
  // X-Forwarded headers of a proxy are missing or not trusted.
  function responseInterceptor(response) {
    if (response.url === new URL(openapi, location.href).href) {
      response.text = JSON.stringify({ ...JSON.parse(response.text), servers: [{ url: server }] });
    }
    return response;
  }

  // An event stream does not end by itself: show what comes in the first seconds.
  function requestInterceptor(request) {
    if (/\/events\/stream(\?|$)/.test(request.url)) request.userFetch = listen;
    return request;
  }

  async function listen(url, options) {
    const stop = new AbortController();
    const response = await fetch(url, { ...options, signal: stop.signal });
    setTimeout(() => stop.abort(), LISTEN);
    let text = "";
    try {
      const reader = response.body.pipeThrough(new TextDecoderStream()).getReader();
      for (let part = await reader.read(); !part.done; part = await reader.read()) text += part.value;
    } catch (error) {
      if (!stop.signal.aborted) throw error;
      text += `: These are the first ${LISTEN / 1000} seconds; the stream goes on.\n`;
    }
    const { status, statusText, headers } = response;
    return Object.defineProperty(new Response(text, { status, statusText, headers }), "url", { value: response.url });
  }

  // The filter box finds operations by their path, name or tag, not only by their tag.
  function opsFilter(tagged, phrase) {
    const wanted = phrase.toLowerCase();
    const has = (text) => String(text ?? "").toLowerCase().includes(wanted);
    return tagged
      .map((tag, name) =>
        has(name)
          ? tag
          : tag.update("operations", (operations) =>
            operations.filter((each) =>
              has(each.get("path")) || has(each.getIn(["operation", "summary"])) ||
              has(each.getIn(["operation", "operationId"]))
            ))
      )
      .filter((tag) => tag.get("operations").size > 0);
  }

  globalThis.ui = globalThis.SwaggerUIBundle({
    url: openapi,
    dom_id: "#swagger-ui",
    deepLinking: true,
    persistAuthorization: true,
    tryItOutEnabled: true,
    displayRequestDuration: true,
    validatorUrl: null,
    filter: true,
    plugins: [() => ({ fn: { opsFilter } })],
    requestInterceptor,
    responseInterceptor,
  });
})();
