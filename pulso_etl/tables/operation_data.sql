SELECT
  fecha_gestion AS fecha_foto,
  EXTRACT(HOUR FROM DATETIME(timestamp_gestion, '{timezone}')) AS hora,
  canal_origen AS canal,
  archivo,
  COUNT(*) AS total_gestiones,
  COUNTIF(es_contacto_efectivo) AS contactos_efectivos,
  COUNT(*) - COUNTIF(es_contacto_efectivo) AS contactos_no_efectivos,
  COUNTIF(es_compromiso) AS total_pdp,
  100 * SAFE_DIVIDE(COUNTIF(es_contacto_efectivo), COUNT(*)) AS tasa_contacto,
  100 * SAFE_DIVIDE(COUNTIF(es_compromiso), COUNTIF(es_contacto_efectivo)) AS tasa_conversion
FROM `{gestiones_unificadas}`
WHERE fecha_gestion BETWEEN @start AND @end
GROUP BY fecha_foto, hora, canal, archivo
