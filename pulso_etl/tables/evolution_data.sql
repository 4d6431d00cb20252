SELECT
  fecha_foto,
  archivo,
  cartera,
  servicio,
  pct_cober,
  pct_contac,
  pct_efectividad,
  pct_cierre,
  recupero,
  cuentas,
  fecha_procesamiento
FROM `{dashboard_cobranzas}`
WHERE fecha_foto BETWEEN @start AND @end
