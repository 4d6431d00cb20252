WITH gestiones AS (
  SELECT
    fecha_gestion AS fecha_foto,
    -- An alias that no column has: with the column's own name, engines differ in what they group by.
    COALESCE(correo_agente, 'SISTEMA') AS agente,
    archivo,
    COUNT(*) AS total_gestiones,
    COUNTIF(es_contacto_efectivo) AS contactos_efectivos,
    COUNTIF(es_compromiso) AS total_pdp,
    SUM(peso) AS peso_total
  FROM `{gestiones_unificadas}`
  WHERE fecha_gestion BETWEEN @start AND @end
  GROUP BY fecha_foto, agente, archivo
),
-- The agents' table may have an e-mail more than once. The query must not count an agent's attempts twice.
agentes AS (
  SELECT correo, MAX(nombre) AS nombre, MAX(dni) AS dni, MAX(equipo) AS equipo
  FROM `{agentes}`
  GROUP BY correo
)
SELECT
  g.fecha_foto,
  g.agente AS correo_agente,
  g.archivo,
  g.total_gestiones,
  g.contactos_efectivos,
  g.total_pdp,
  g.peso_total,
  100 * SAFE_DIVIDE(g.contactos_efectivos, g.total_gestiones) AS tasa_contacto,
  100 * SAFE_DIVIDE(g.total_pdp, g.contactos_efectivos) AS tasa_conversion,
  COALESCE(a.nombre, 'SISTEMA') AS nombre_agente,
  a.dni AS dni_agente,
  COALESCE(a.equipo, 'SISTEMA') AS equipo
FROM gestiones AS g
LEFT JOIN agentes AS a ON a.correo = g.agente
