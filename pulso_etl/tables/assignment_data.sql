SELECT
  periodo_mes AS periodo,
  archivo,
  tipo_cartera AS cartera,
  servicio,
  fecha_foto,
  MAX(fecha_vencimiento) AS fecha_vencimiento,
  COUNT(DISTINCT cliente) AS clientes,
  COUNT(DISTINCT cuenta) AS cuentas,
  SUM(deuda_inicial) AS deuda_asig,
  SUM(deuda_actual) AS deuda_actual,
  ROUND(SAFE_DIVIDE(SUM(deuda_inicial), CAST(COUNT(DISTINCT cuenta) AS NUMERIC)), 2) AS ticket_promedio
FROM `{asignaciones_clean}`
WHERE fecha_foto BETWEEN @start AND @end
GROUP BY periodo_mes, archivo, tipo_cartera, servicio, fecha_foto
